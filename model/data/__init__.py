"""Data sets, augmentation, and the order of the training samples."""
