"""Makes the pictures of the documentation from the demo: `make pictures`."""
