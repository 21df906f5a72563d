"""Parse areas: a number of pixels, or a share of the photo."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from postprocess.errors import InvalidOption, is_number

PATTERN = r"^\d{1,9}(\.\d{0,15})?%?$|^\.\d{1,15}%?$"  # as text: 64, 0.001 or 0.1%


MOST = 999_999_999  # pixels


@dataclass(frozen=True)
class Area:
    """A number of pixels, or a share of a photo's pixels."""

    value: float
    is_share: bool = False

    def pixels(self, total: int) -> int:
        """Return the area in pixels for a photo of `total` pixels, rounded up."""
        # Without the margin, 0.1 % of 1000 pixels would be 1.0000000000000002.
        return math.ceil(self.value * total - 1e-6) if self.is_share else int(self.value)


def area(name: str, value: float | str) -> Area | None:
    """Parse an area: 64, 0.001, "64", "0.001" or "0.1%"; None for 0. Raises InvalidOption.

    A number below 1 is a share of the photo's pixels; from 1 it is a number of pixels.
    """
    text = value.strip() if isinstance(value, str) else ""
    number = _number(text.removesuffix("%") if isinstance(value, str) else value)
    number /= 100 if text.endswith("%") else 1
    is_share = text.endswith("%") or 0 < number < 1
    if not 0 <= number <= MOST or (is_share and number > 1) or (not is_share and number % 1):
        raise InvalidOption(
            f"{name}={value!r}: give whole pixels from 1 to {MOST} (64), a share of the photo "
            "(0.001 or 0.1%, at most 100%), or 0 to turn it off"
        )
    return Area(number, is_share) if number else None


def _number(text: float | str) -> float:
    """Return a plain decimal number, or NaN."""
    if not isinstance(text, str):
        return float(text) if is_number(text) else math.nan
    is_plain = text.isascii() and re.match(PATTERN, text) and not text.endswith(("%", "\n"))
    return float(text) if is_plain else math.nan
