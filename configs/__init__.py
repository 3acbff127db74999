"""Configuration models of each part, and the one way they are read; a leaf that every part may import."""
