"""Which photos to label next, and which labels are probably wrong."""
