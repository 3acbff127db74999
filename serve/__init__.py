"""From a registered model to answers over HTTP, on Ray Serve."""
