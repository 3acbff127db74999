"""Which sample goes into which batch, for any number of ranks."""
