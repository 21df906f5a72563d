"""Encoders of DeepLabv3+, each at output stride 8, 16 or 32 from one set of weights."""
