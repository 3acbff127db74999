"""Which video belongs in which split and shard, decided before any work."""
