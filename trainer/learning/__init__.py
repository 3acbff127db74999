"""Train and evaluation steps in plain torch, over one or more ranks."""
