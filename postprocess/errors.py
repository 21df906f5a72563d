"""The errors of this package."""

from __future__ import annotations


class InvalidOption(ValueError):
    """An option is out of range; the message names the option, the value and the range."""


class TooComplex(ValueError):
    """A label map has more runs, regions or corners than the limit."""
