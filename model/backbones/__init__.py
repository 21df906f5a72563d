"""Encoders that DeepLabv3+ is built on, each at output stride 8, 16 or 32 from one set."""
