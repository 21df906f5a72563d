"""Training: recipes, the training loop, losses, distributed runs."""

import time

STARTED = time.monotonic()  # about the start of the process: nothing heavy is loaded before
