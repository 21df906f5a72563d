"""Training: recipes, the loop, losses, distributed runs."""
