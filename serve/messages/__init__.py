"""What requests and answers hold: JSON, tensors, refusals."""
