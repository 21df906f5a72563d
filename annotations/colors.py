"""Colours for labels that have none."""

from __future__ import annotations

from annotations.shapes import Color


def palette(count: int) -> tuple[Color, ...]:
    """PASCAL VOC's colours: the bits of the id go to the high bits of red, green and blue."""

    def color(index: int) -> Color:
        red, green, blue = (
            sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(8))
            for channel in range(3)
        )
        return red, green, blue

    return tuple(color(index) for index in range(count))
