"""Published weights: list, download, check and convert them to our checkpoint."""
