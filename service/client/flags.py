"""The flags that the batch client and the Ray batch have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import urlencode

from service.client.protocol import FILES

# Flags of the service's query, by its own names.
QUERY = ("fit", "overlap", "classes", "alpha", "contour", "overlay_format", "mask_format")


def add_results(parser: argparse.ArgumentParser) -> None:
    """What is made of the photos."""
    add = parser.add_argument
    outputs = ", ".join(FILES)
    add("--output", metavar="LIST", default="mask,overlay", help=f"of {outputs} (mask,overlay)")
    side = "shrink larger photos first; results then have the shrunk size"
    add("--max-side", metavar="PX", type=positive, help=side)
    add("--base", metavar="DIR", type=Path, help="folder that OUT mirrors (the inputs' common one)")
    add("--report", action="store_true", help="count class pixels; write tables, contact sheets")
    add("--json", action="store_true", help="print the summary as JSON")


def add_query(parser: argparse.ArgumentParser) -> None:
    """What the service's query takes beside output and model."""
    add = parser.add_argument_group("as the service offers it").add_argument
    sliding = "larger photos than the model: resize shrinks them, sliding cuts them into windows"
    add("--fit", choices=("resize", "sliding"), help=f"{sliding} (the service's --fit)")
    add("--overlap", metavar="SHARE", type=float, help="of sliding windows, 0 to 0.5 (0.25)")
    add("--classes", metavar="LIST", help="only these, by name or id (all)")
    add("--alpha", metavar="A", type=float, help="opacity of the overlay's colours, 0 to 1 (0.5)")
    add("--contour", metavar="PX", type=int, help="width of outlines in the overlay (0: none)")
    add("--overlay-format", choices=("jpeg", "png"), help="of the overlay (jpeg)")
    formats = "of the mask: with the class colours, or 8-bit grey, for OpenCV (palette)"
    add("--mask-format", choices=("palette", "gray"), help=formats)


def query(options: argparse.Namespace) -> str:
    """What `add_query` has been given, as the query has it."""
    given = ((name, getattr(options, name)) for name in QUERY)
    return urlencode([(name, value) for name, value in given if value is not None])


def add_limits(parser: argparse.ArgumentParser) -> None:
    """What is worked on, and when to stop."""
    add = parser.add_argument_group("limits").add_argument
    add("--dry-run", action="store_true", help="only say what would be done")
    add("--retry-failed", action="store_true", help="also photos that were rejected before")
    add("--fail-fast", action="store_true", help="stop at the first failure")
    add("--max-failures", metavar="N", type=positive, help="stop after N failures")


def most_failures(options: argparse.Namespace) -> int | None:
    """What `add_limits` has been given as the end of patience."""
    return 1 if options.fail_fast else options.max_failures


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
