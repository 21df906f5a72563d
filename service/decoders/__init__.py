"""Decode photos in threads, or in processes that can be ended while they decode."""
