"""Reading files as data, and writing them atomically."""
