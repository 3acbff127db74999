"""The splits, and the names that datasets and tools have for them."""

SPLITS = ("train", "val", "test")
SPLIT_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""The split that a folder, or a row of a table, means by its name in lower case."""
