"""Which sample goes into which row of which batch, for any number of ranks and from any start."""
