"""Training: recipes, the training loop, losses, distributed runs."""

import time

STARTED = time.monotonic()  # about when the process did: nothing heavy is loaded before
