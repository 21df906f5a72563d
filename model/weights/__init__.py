"""Published weights: a table of them, their download, a check, and our checkpoint."""
