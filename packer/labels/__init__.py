"""Labels from a file: tables and the formats of annotation tools and datasets, one reader each, into the same rows."""
