"""Files at a path or an address: read, list, write whole, lock."""
