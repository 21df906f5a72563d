"""Convert published weights of other implementations to our checkpoints."""
