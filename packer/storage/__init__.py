"""Files at a path or an address: read, list, write whole or not at all, lock."""
