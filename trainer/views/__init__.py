"""What the model sees of a stored clip: training views, and the one evaluation view."""
