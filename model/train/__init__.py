"""Training: recipes, the training loop, losses, distributed runs."""
