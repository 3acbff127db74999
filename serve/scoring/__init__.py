"""A folder of videos to a table of predictions, without a server."""
