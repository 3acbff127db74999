"""Shards to batches: read, decode, augment, batch, prefetch."""
