"""Git repositories on disk, read and written by this product's own engine."""
