"""Data sets, augmentation and the order in which samples are drawn."""
