"""Trains a video classifier on packed shards by Ray Train, tracks it in MLflow and registers the best model."""
