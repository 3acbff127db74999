"""What a pack is on disk: samples, shards, manifest, index and stored plan."""
