"""ASGI middleware and protocol limits: sizes, keys, timeouts, shutdown."""
