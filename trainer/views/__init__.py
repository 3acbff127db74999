"""What the model sees of a stored clip: the random views of training, and the one view of evaluation."""
