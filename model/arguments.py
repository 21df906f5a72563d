"""Values of command-line options that argparse does not know: lists and sizes."""

from __future__ import annotations

from argparse import ArgumentTypeError


def integers(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4); an empty text is the empty tuple."""
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no list of integers such as 6,12,18") from None


def scales(text: str) -> tuple[float, ...]:
    """`0.5,1,1.5` -> (0.5, 1.0, 1.5), all above 0."""
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no list of scales such as 0.5,1,1.5") from None
    if not all(0 < value < 100 for value in values):
        raise ArgumentTypeError(f"{text!r} has a scale that is not above 0 and below 100")
    return values


def size(text: str) -> tuple[int, int]:
    """`1025,2049` or `1025x2049` -> (height, width)."""
    try:
        height, width = (int(word) for word in text.replace("x", ",").split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no size H,W such as 513,513") from None
    if height < 1 or width < 1:
        raise ArgumentTypeError(f"{text!r} has a side below 1")
    return height, width
