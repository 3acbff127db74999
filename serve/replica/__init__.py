"""A loaded model: decode, batch, forward, follow the alias."""
