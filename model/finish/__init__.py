"""Improve a trained checkpoint without training it further."""
