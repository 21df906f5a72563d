"""The network of the paper, and the functions from a photo to its label map."""
