"""Benchmarks and load tests of the running service."""
