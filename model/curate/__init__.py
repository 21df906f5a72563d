"""Find the photos to label next, and the labels that are probably wrong."""
