"""HTTP: routes, limits, keys, uploads, the page."""
