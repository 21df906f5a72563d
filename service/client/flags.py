"""The flags that the batch client and the Ray batch share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlencode

from service.client.protocol import FILES

LONGEST_WINDOW = 31  # frames: a second
DEFAULT_OUTPUT = "mask,overlay"
# Flags that only apply to photos.
NOT_OF_VIDEOS = (
    *("max_side", "base", "report", "contour", "legend", "include"),
    *("overlay_format", "mask_format", "picture_side"),
    *("instances", "simplify", "top", "coverage"),
    *("dry_run", "retry_failed", "fail_fast", "max_failures"),
)
# Flags that are parameters of the service's query, with the same names.
QUERY = (
    "fit",
    "overlap",
    "classes",
    "min_confidence",
    "below",
    "threshold",
    "smooth",
    "min_area",
    "fill_holes",
    "instances",
    "simplify",
    "fill",
    "top",
    "coverage",
    "alpha",
    "contour",
    "legend",
    "overlay_format",
    "mask_format",
    "picture_side",
    "include",
)
RENAMED = {"picture_side": "max_side"}  # --max-side shrinks photos before they are sent


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the results."""
    add = parser.add_argument
    outputs = ", ".join(FILES)
    add(
        "--output",
        metavar="LIST",
        default=DEFAULT_OUTPUT,
        help=f"outputs, separated by commas, from {outputs} (default: mask,overlay)",
    )
    side = (
        "shrink photos with a longer side than PX pixels before sending; their results are as small"
    )
    add("--max-side", metavar="PX", type=positive, help=side)
    add(
        "--base",
        metavar="DIR",
        type=Path,
        help="folder that OUT mirrors (default: the inputs' common folder)",
    )
    add(
        "--report",
        action="store_true",
        help="count the pixels of each class, and write tables and contact sheets",
    )
    add("--json", action="store_true", help="print the summary as JSON")


def add_query(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the other parameters of the service's query."""
    add = parser.add_argument_group("options of the service").add_argument
    sliding = (
        "what to do with photos larger than the model's input: resize shrinks them, sliding cuts "
    )
    sliding += "them into windows"
    add("--fit", choices=("resize", "sliding"), help=f"{sliding} (default: the service's setting)")
    add(
        "--overlap",
        metavar="SHARE",
        type=float,
        help="share of a window that the next one covers too, 0 to 0.5 (default: 0.25)",
    )
    add(
        "--classes",
        metavar="LIST",
        help="only these classes, by name or id, separated by commas (default: all)",
    )
    _add_refinement(add)
    add(
        "--alpha",
        metavar="A",
        type=float,
        help="opacity of the overlay's colours, 0 to 1 (default: 0.5)",
    )
    add(
        "--contour",
        metavar="PX",
        type=int,
        help="width of outlines in the overlay, in pixels (default: 0, none)",
    )
    names = "draw names and shares of the classes into overlay and side-by-side"
    add("--legend", action="store_const", const="true", help=names)
    kinds = "format of overlay, blur, replace, side-by-side, heatmap (default: jpeg); cutout is png"
    kinds += " with jpeg"
    add("--overlay-format", choices=("jpeg", "png", "webp", "avif"), help=kinds)
    formats = "format of the mask: with class colours, or 8-bit grey for OpenCV (default: palette)"
    add("--mask-format", choices=("palette", "gray"), help=formats)
    inside = "pictures to include in output json, as base64: mask, color, overlay, confidence"
    add("--include", metavar="LIST", help=inside)
    small = "longest side of pictures in the answer, in pixels; JSON keeps the photo's own pixels"
    add("--picture-side", metavar="PX", type=positive, help=f"{small} (default: as the photo)")


def _add_refinement(add: Callable[..., object]) -> None:
    """Add the flags for clean masks, instances, polygons and probabilities."""
    sure = "least confidence of a pixel: 0.6, or person:0.8,car:0.5 (default: 0)"
    add("--min-confidence", metavar="P", help=sure)
    best = "take the model's calibrated confidence for classes that --min-confidence does not name"
    add("--threshold", choices=("best",), help=best)
    below = "class of less sure pixels: background if there is one, or void (default: background)"
    add("--below", choices=("background", "void"), help=below)
    edges = "make labels follow the edges of the photo, at its own size"
    add("--smooth", action="store_const", const="true", help=edges)
    small = "remove regions smaller than this: pixels, or a share such as 0.1%% (default: 0)"
    add("--min-area", metavar="AREA", help=small)
    holes = "fill holes up to this area that one class surrounds (default: 0)"
    add("--fill-holes", metavar="AREA", help=holes)
    split = "list the connected regions of each class in json, rle, polygons and npz"
    add("--instances", action="store_const", const="true", help=split)
    simple = "simplify polygons by up to so many pixels, 0 to 100 (default: 0)"
    add("--simplify", metavar="PX", type=float, help=simple)
    add("--fill", metavar="RRGGBB", help="colour of output replace (default: ffffff)")
    most = "in probabilities, give only so many classes of each point (default: 0, all)"
    add("--top", metavar="K", type=int, help=most)
    share = "in probabilities, give sets of classes with the truth in this share of pixels"
    add("--coverage", metavar="SHARE", type=float, help=share)


def add_video(parser: argparse.ArgumentParser) -> None:
    """Add the flags for videos."""
    about = "--output of a video is overlay (default), color or mask"
    add = parser.add_argument_group("videos", about).add_argument
    steady = (
        "give each pixel the class that most of the N frames around it have; N is odd (default: 1)"
    )
    add("--steady", metavar="N", type=_odd, default=1, help=steady)


def _odd(text: str) -> int:
    number = positive(text)
    if number % 2 == 0 or number > LONGEST_WINDOW:
        raise argparse.ArgumentTypeError(f"must be odd, and at most {LONGEST_WINDOW}")
    return number


def query(options: argparse.Namespace) -> str:
    """Return the given flags of `add_query` as a query string."""
    given = ((name, getattr(options, name)) for name in QUERY)
    return urlencode([(RENAMED.get(name, name), each) for name, each in given if each is not None])


def correction(query: str, detail: str) -> str:
    """Return `correct --classes`: the flags whose parameters the service's `detail` names."""
    flags = {parameter: flag for flag, parameter in RENAMED.items()}
    named = [
        f"--{flags.get(name, name).replace('_', '-')}"
        for name in (*parse_qs(query), "output")
        if re.search(rf"(?:^|; ){name}\b", detail)
    ]
    return f"correct {' and '.join(named) or 'the options'}"


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the flags that limit a run."""
    add = parser.add_argument_group("limits").add_argument
    add("--dry-run", action="store_true", help="print what would be done, and exit")
    add("--retry-failed", action="store_true", help="also send photos that were rejected before")
    add("--fail-fast", action="store_true", help="stop at the first failure")
    add("--max-failures", metavar="N", type=positive, help="stop after N failures")


def most_failures(options: argparse.Namespace) -> int | None:
    """Return the number of failures at which to stop, or None."""
    return 1 if options.fail_fast else options.max_failures


def positive(text: str) -> int:
    """Parse an integer of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
