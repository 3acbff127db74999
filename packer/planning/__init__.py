"""Decides which video goes into which split and shard, before any video is decoded."""
