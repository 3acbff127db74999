"""Shards to batches: read, decode, augment, mix, batch, prefetch."""
