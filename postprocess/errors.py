"""The errors of this package."""

from __future__ import annotations

from numbers import Real


class InvalidOption(ValueError):
    """An option is out of range; the message names the option, the value and the range."""


class TooComplex(ValueError):
    """A label map has more runs, regions or corners than the limit."""


class TooLarge(ValueError):
    """A result is larger than its format or a limit allows; the message says what to change."""


class TooManyBytes(ValueError):
    """The results of a photo have more bytes than the caller takes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the results have {size} bytes or more, the limit is {limit}")
        self.size, self.limit = size, limit


def is_number(value: object) -> bool:
    """Whether an option is a number; True and False are none, though Python counts with them."""
    return isinstance(value, Real) and not isinstance(value, bool)
