"""What runs on every rank of a training."""
