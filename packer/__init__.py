"""From a folder of videos to WebDataset shards with a manifest and an index."""
