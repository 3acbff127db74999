"""Scores a folder of videos into a table of predictions, without a server."""
