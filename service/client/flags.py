"""The flags that the batch client and the Ray batch share."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlencode

import service
from service.client.exchange import TIMEOUT_S
from service.client.protocol import FILES
from service.client.retry import RetryPolicy

LONGEST_WINDOW = 31  # frames: about a second
DEFAULT_OUTPUT = "mask,overlay"
OUTPUT_HELP = f"outputs, separated by commas, from {', '.join(FILES)} (default: {DEFAULT_OUTPUT})"
# Flags that only apply to photos.
NOT_OF_VIDEOS = (
    *("max_side", "base", "report", "contour", "include"),
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
ADVICE = re.compile(r"\b([a-z_]+)=")  # in a sentence of the service: `use fit=resize`
RENAMED = {"picture_side": "max_side"}  # --max-side shrinks photos before they are sent


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add --version."""
    shown = f"deeplab {service.version()}"
    parser.add_argument("--version", action="version", version=shown, help="print the version")


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the results."""
    add = parser.add_argument
    add("--output", metavar="LIST", default=DEFAULT_OUTPUT, help=OUTPUT_HELP)
    add_files(parser)
    add(
        "--report",
        action="store_true",
        help="count the pixels of each class, and write tables and contact sheets",
    )
    add("--json", action="store_true", help="print the summary as JSON")


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the flags for photos that are read here."""
    add = parser.add_argument
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
        help="width of outlines in the overlay, in pixels, 0 to 32 (default: 0, none)",
    )
    names = "draw names and shares of the classes into overlay and side-by-side"
    add("--legend", action="store_const", const="true", help=names)
    kinds = "format of overlay, blur, replace, side-by-side, heatmap and cutout (default: jpeg; "
    kinds += "png for cutout)"
    add("--overlay-format", choices=("jpeg", "png", "webp", "avif"), help=kinds)
    formats = "format of the mask: with class colours, or 8-bit grey for OpenCV (default: palette)"
    add("--mask-format", choices=("palette", "gray"), help=formats)
    inside = "pictures to include in output json, as base64: mask, color, overlay, confidence"
    add("--include", metavar="LIST", help=inside)
    small = "longest side of pictures in the answer, in pixels; JSON keeps the photo's own pixels"
    add("--picture-side", metavar="PX", type=positive, help=f"{small} (default: as the photo)")


def _add_refinement(add: Callable[..., object]) -> None:
    """Add the flags for clean masks, instances, polygons and probabilities."""
    sure = "least confidence of a pixel, 0 to 1: 0.6, or person:0.8,car:0.5 (default: 0)"
    add("--min-confidence", metavar="P", help=sure)
    best = "take the model's calibrated confidence for classes that --min-confidence does not name"
    add("--threshold", choices=("best",), help=best)
    below = "class of pixels below it: background if there is one, or void (default: background)"
    add("--below", choices=("background", "void"), help=below)
    edges = "make labels follow the edges of the photo, at its own size"
    add("--smooth", action="store_const", const="true", help=edges)
    small = "remove regions smaller than this: pixels, or a share such as 0.1%% (default: 0)"
    add("--min-area", metavar="AREA", help=small)
    holes = "fill holes up to this area that one class surrounds, given alike (default: 0)"
    add("--fill-holes", metavar="AREA", help=holes)
    split = "list the connected regions of each class in json, rle, polygons and npz"
    add("--instances", action="store_const", const="true", help=split)
    simple = "simplify polygons; outlines move by at most this many pixels, 0 to 100 (default: 0)"
    add("--simplify", metavar="PX", type=float, help=simple)
    add("--fill", metavar="RRGGBB", help="colour of output replace (default: ffffff)")
    most = "in probabilities, give only the K most probable classes of each point, 1 to 256 "
    most += "(default: 0, all)"
    add("--top", metavar="K", type=int, help=most)
    share = "in probabilities, give sets of classes that hold the true one in this share of "
    share += "pixels, above 0 and below 1"
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
    """Return `correct --alpha`, or `set --classes` if `detail` advises a parameter."""
    named, advised = (*parse_qs(query), "output"), {RENAMED.get(name, name) for name in QUERY}
    steps: dict[str, list[str]] = {"correct": [], "set": []}
    for problem in detail.split("; "):
        found = [name for name in ADVICE.findall(problem.partition(": ")[2]) if name in advised]
        wrong = [name for name in named if re.match(rf"{name}\b", problem)]
        steps["set" if found else "correct"] += map(_flag, found or wrong)
    told = [
        f"{verb} {' and '.join(dict.fromkeys(names))}" for verb, names in steps.items() if names
    ]
    return ", ".join(told) or "correct the options"


def _flag(parameter: str) -> str:
    names = {parameter: flag for flag, parameter in RENAMED.items()}
    return f"--{names.get(parameter, parameter).replace('_', '-')}"


def add_connection(parser: argparse.ArgumentParser, *, concurrency: bool = True) -> None:
    """Add the flags for the connection to the service."""
    add = parser.add_argument_group("connection").add_argument
    patience, key = RetryPolicy.give_up_after_s, os.environ.get("DEEPLAB_API_KEY")
    if concurrency:
        add(
            "--concurrency",
            metavar="N",
            type=_concurrency,
            help="requests at a time, or auto (default: auto)",
        )
    add(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=TIMEOUT_S,
        help="seconds that one try may take (default: %(default)g)",
    )
    tries = "seconds that all tries of one photo may take (default: %(default)g)"
    add("--give-up-after", metavar="SECONDS", type=float, default=patience, help=tries)
    add(
        "--api-key",
        metavar="KEY",
        default=key,
        help="API key; other users of this machine see flags, so set DEEPLAB_API_KEY instead",
    )


def _concurrency(text: str) -> int | None:
    return None if text == "auto" else positive(text)


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
