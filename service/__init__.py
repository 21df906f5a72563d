"""The HTTP service, its inference engine and the batch client. Needs neither torch nor `model`."""
