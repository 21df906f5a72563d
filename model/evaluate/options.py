"""Command-line options that model.evaluate and export.evaluate share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model import arguments
from model.data.dataset import Dataset, find
from model.data.guess import choose
from model.data.pairs import expect_samples
from model.evaluate.evaluation import check_classes, show
from pixels.bands import Samples

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def add_evaluation_arguments(p: argparse.ArgumentParser) -> None:
    """The options that model.evaluate and export.evaluate share."""
    arguments.add_dataset(p)
    arguments.add_photos(p, "evaluate on")
    p.add_argument(
        "--trimap",
        type=arguments.widths,
        metavar="W,W,...",
        help="also measure mIoU within W pixels of the void label, for example 1,5,10,20,40",
    )
    p.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the --trimap curve: .png, .svg or .pdf"
    )
    p.add_argument(
        "--boundary", action="store_true", help="also measure boundary IoU (Cheng et al. 2021)"
    )
    p.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write all figures as JSON; - writes them to stdout instead of the table",
    )


def evaluation_arguments(
    p: argparse.ArgumentParser, argv: list[str] | None
) -> tuple[argparse.Namespace, float | None]:
    """Parse the command line: (arguments, overlap of windows); exits on a usage error."""
    args = p.parse_args(argv)
    check_plot(p, args)
    return args, arguments.overlap(p, args)


def open_dataset(
    args: argparse.Namespace,
    classes: Sequence[str],
    samples: Samples,
    trained_on: str | None = None,
) -> Dataset:
    """Open the data set that --dataset, --data and --split name.

    Raises DatasetError if it is not there or its classes or channels are not the model's.
    """
    dataset = find(choose(args.dataset, args.data, trained_on), args.data, args.split)
    check_classes(classes, dataset)
    expect_samples(dataset, samples)
    return dataset


def open_part(
    args: argparse.Namespace,
    classes: Sequence[str],
    samples: Samples,
    trained_on: str | None = None,
) -> tuple[Dataset, dict[str, Any]]:
    """Open the data set, thinned to --photos; also return what the results must tell of that."""
    whole = open_dataset(args, classes, samples, trained_on)
    part = whole.thinned(args.photos or len(whole.pairs))
    left_out = len(part.pairs) < len(whole.pairs)
    return part, {"images_in_split": len(whole.pairs)} if left_out else {}


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
