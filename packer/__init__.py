"""Turns a folder of videos into WebDataset shards with a manifest and an index."""
