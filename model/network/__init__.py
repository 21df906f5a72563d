"""The network of the paper, and what turns a photo into its label map."""
