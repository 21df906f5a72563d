"""Command-line options that model.evaluate and export.evaluate share."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from model import arguments
from model.data.dataset import DATASETS
from model.evaluate.evaluation import show

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def add_evaluation_arguments(p: argparse.ArgumentParser) -> None:
    """The options that model.evaluate and export.evaluate share."""
    p.add_argument(
        "--dataset",
        choices=sorted(DATASETS),
        help="default: what lies in --data, else what was trained on",
    )
    p.add_argument("--data", type=Path, required=True, help="folder that holds the data set")
    p.add_argument("--split", default="val")
    p.add_argument(
        "--trimap",
        type=arguments.widths,
        metavar="W,W,...",
        help="also mIoU within W pixels of the void label, for example 1,5,10,20,40",
    )
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw the trimap curve: PNG, SVG, PDF")
    p.add_argument("--boundary", action="store_true", help="also boundary IoU (Cheng et al. 2021)")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures; - is stdout")


def check_plot(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a usage error if --plot cannot be drawn, before any work is done."""
    if args.plot is None:
        return
    if not args.trimap:
        p.error("--plot draws the trimap curve: give --trimap 1,5,10,20,40 with it")
    if args.plot.suffix not in PLOT_SUFFIXES:
        p.error(f"--plot {args.plot}: the name must end in one of {', '.join(PLOT_SUFFIXES)}")


def report(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the table, and write JSON and plot if the options ask for them."""
    target = args.json
    if target is None or str(target) != "-":
        print(show(result))
    if target is not None:
        text = json.dumps(result, indent=2) + "\n"
        if str(target) == "-":
            sys.stdout.write(text)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    if args.plot is not None:
        from model.evaluate import plots  # noqa: PLC0415 - matplotlib takes a second to load

        curve = {int(width): miou for width, miou in result["trimap"].items()}
        plots.trimap({f"{result['dataset']} {result['split']}": [curve]}, args.plot)
