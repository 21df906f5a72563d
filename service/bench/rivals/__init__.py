"""Other servers and runtimes that `make bench` compares with, each in its own environment."""
