"""Published weights of other implementations -> our checkpoints, with nothing left over."""
