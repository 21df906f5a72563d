"""What command lines share: options, and values that argparse does not know (lists, sizes)."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError


def add_passes(p: ArgumentParser) -> None:
    """How a network is run over a photo, in model.evaluate, model.predict and export alike."""
    p.add_argument("--output-stride", type=int, choices=(8, 16, 32), help="default: as trained")
    p.add_argument(
        "--scales",
        type=scales,
        default=(1.0,),
        metavar="S,S,...",
        help="average probabilities over these sizes of the photo",
    )
    p.add_argument("--flip", action="store_true", help="average with the mirrored photo")


def integers(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4); an empty text is the empty tuple."""
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no list of integers such as 6,12,18") from None


def widths(text: str) -> tuple[int, ...]:
    """`1,5,10` -> (1, 5, 10), all above 0."""
    values = integers(text)
    if not values or min(values) < 1:
        raise ArgumentTypeError(f"{text!r} is no list of widths above 0 such as 1,5,10")
    return values


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
