"""Options and value types (lists, sizes) that several command lines share."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.dataset import DATASETS

if TYPE_CHECKING:
    import torch

# Of --dataset, wherever a checkpoint or a file is compared with one.
DATASET_HELP = "kind of data set (default: found in --data, else the one trained on)"

OVERLAP = 1 / 3  # of sliding windows


def add_passes(p: ArgumentParser) -> None:
    """Add output stride, scales and flip: for model.evaluate, model.predict and export."""
    p.add_argument(
        "--output-stride",
        type=int,
        choices=(8, 16, 32),
        help="pixels of the photo per pixel of the encoder's last map; 8 is slower and more exact "
        "(default: as trained)",
    )
    p.add_argument(
        "--scales",
        type=scales,
        default=(1.0,),
        metavar="S,S,...",
        help="average the probabilities over these sizes of the photo, such as 0.5,1,1.5 "
        "(default: 1)",
    )
    p.add_argument("--flip", action="store_true", help="also average with the mirrored photo")


def add_checkpoint(p: ArgumentParser) -> None:
    """Add the checkpoint that a command reads."""
    p.add_argument(
        "checkpoint", type=Path, help="checkpoint: NAME of NAME.safetensors and NAME.json"
    )


def add_out(p: ArgumentParser) -> None:
    """Add the checkpoint that a command writes."""
    p.add_argument(
        "-o", "--out", type=Path, required=True, help="checkpoint to write, another NAME"
    )


def add_dataset(p: ArgumentParser, split: str | None = "val") -> None:
    """Add --dataset, --data and --split; without a default split it is the one trained on."""
    p.add_argument("--dataset", choices=sorted(DATASETS), help=DATASET_HELP)
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data set")
    usual = split or "the one trained on"
    p.add_argument("--split", default=split, help=f"part of the data set (default: {usual})")


def add_photos(p: ArgumentParser, work: str) -> None:
    """Add --photos, for a part of the split; `work` is what is done with it: "evaluate on"."""
    p.add_argument(
        "--photos",
        type=positive,
        metavar="N",
        help=f"{work} N photos of the split, evenly spread (default: all)",
    )


def add_rates(p: ArgumentParser, multi_grid: str, atrous_rates: str) -> None:
    """Add --multi-grid and --atrous-rates; the texts describe their defaults."""
    p.add_argument(
        "--multi-grid",
        type=integers,
        metavar="A,B,C",
        help=f"factors of the last block's rates (default: {multi_grid})",
    )
    p.add_argument(
        "--atrous-rates",
        type=integers,
        metavar="R,...",
        help=f"rates of the ASPP at output stride 16 (default: {atrous_rates})",
    )


def add_device(p: ArgumentParser) -> None:
    """Add --device, for every command that runs a network on photos."""
    import torch  # noqa: PLC0415 - takes seconds to load, and few options need it

    default = "cuda" if torch.cuda.is_available() else "cpu"
    p.add_argument(
        "--device",
        type=device,
        default=default,
        help=f"cpu, cuda, or one GPU such as cuda:1 (default on this machine: {default})",
    )


def add_remade(p: ArgumentParser) -> None:
    """Add the checkpoint to read, the one to write, and the data set it was trained on."""
    add_checkpoint(p)
    add_out(p)
    add_dataset(p, None)
    p.add_argument(
        "--sampling",
        default="balanced",
        choices=("uniform", "balanced"),
        help="draw every photo equally often, or rare classes more often, as in training "
        "(default: balanced)",
    )


def add_windows(p: ArgumentParser, *, whole: bool = True) -> None:
    """Add --sliding, --overlap and, for networks that take any size, --whole."""
    larger = p.add_mutually_exclusive_group()
    larger.add_argument(
        "--sliding",
        action="store_true",
        help="cut photos larger than the crop size into windows of that size (default: shrink "
        "them to the crop size, as the service does)",
    )
    if whole:
        larger.add_argument(
            "--whole",
            action="store_true",
            help="predict larger photos whole, as the paper does; memory grows with the photo",
        )
    p.add_argument(
        "--overlap",
        type=share,
        metavar="SHARE",
        help="with --sliding: share of a window that the next one covers too (default: 1/3)",
    )


# Advice when memory runs out: for commands with `add_passes` and `add_windows`, and for others.
SMALLER_CROP = (
    "take a checkpoint of a smaller model.crop_size, or --device cpu where a GPU is too small"
)
LESS_MEMORY = (
    "take fewer or smaller --scales, a larger --output-stride, or --sliding; leave out --whole "
    "and --flip"
)


def overlap(p: ArgumentParser, args: Namespace) -> float | None:
    """The overlap that the options ask for, None without windows; exits on a usage error."""
    if args.overlap is not None and not args.sliding:
        p.error("--overlap only applies to windows: give --sliding too")
    if not args.sliding:
        return None
    return float(OVERLAP if args.overlap is None else args.overlap)


def share(text: str) -> float:
    """A number from 0 to below 1, or a fraction such as 1/3."""
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise ArgumentTypeError(f"{text!r} is not a share such as 0.5 or 1/3") from None
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"{text!r} must be at least 0 and below 1")
    return value


def integers(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4); an empty text is the empty tuple."""
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a list of integers such as 6,12,18") from None


def count(text: str) -> int:
    """An integer from 0 on."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number such as 0 or 6")
    return int(text)


def positive(text: str) -> int:
    """An integer from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def device(text: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:1`, if that device exists."""
    import torch  # noqa: PLC0415 - as in add_device

    try:
        chosen = torch.device(text)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # an assertion: torch without CUDA
        raise ArgumentTypeError(f"{text!r}: {str(error).splitlines()[0]}") from None
    return chosen


def widths(text: str) -> tuple[int, ...]:
    """`1,5,10` -> (1, 5, 10), all above 0."""
    values = integers(text)
    if not values or min(values) < 1:
        raise ArgumentTypeError(f"{text!r} is not a list of widths above 0 such as 1,5,10")
    return values


def scales(text: str) -> tuple[float, ...]:
    """`0.5,1,1.5` -> (0.5, 1.0, 1.5), all above 0."""
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a list of scales such as 0.5,1,1.5") from None
    if not all(0 < value < 100 for value in values):
        raise ArgumentTypeError(
            f"{text!r} has a scale out of range: give numbers above 0 and below 100"
        )
    return values


def size(text: str) -> tuple[int, int]:
    """`1025,2049` or `1025x2049` -> (height, width)."""
    try:
        height, width = (int(word) for word in text.replace("x", ",").split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a size H,W such as 513,513") from None
    if height < 1 or width < 1:
        raise ArgumentTypeError(f"{text!r} has a side below 1 pixel")
    return height, width
