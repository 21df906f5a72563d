"""The HTTP service, its engine and its batch client; needs neither torch nor `model`."""
