"""Weight files: download, read, convert, and merge into a model's parameters."""
