"""Test the paper's claims on small networks: `python -m model.studies STUDY --data DIR --out DIR`.

decoder  the decoder against bilinear upsampling, with trimap curves (figure 5a)
stride   evaluation at output stride 16 against 8 (tables 3 and 5)
scales   multi-scale and flip (tables 3 and 5)
widths   channels of the decoder's low-level feature (table 1)
all      all of them, the most important first
write    write docs/studies.md from the results

This takes hours of CPU time. Parts that are done are skipped, so start it again to
continue an interrupted run. --dry-run lists the parts.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from model import arguments
from model.data.dataset import DatasetError
from model.paper.studies import pages
from model.paper.studies.plan import BUNDLED, MULTI_SCALE, PRESET, STUDIES, Point
from model.paper.studies.run import StudyError, StudySettings, run
from model.train import recipe
from model.train.options import add_overrides, add_workers
from model.train.recipe import RecipeError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.studies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.studies all --data DATA --out runs/studies",
    )
    p.add_argument("study", choices=[*STUDIES, "write"], help="what to do, see above")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder that holds VOCdevkit")
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for runs and results"
    )
    p.add_argument(
        "--seeds",
        type=arguments.integers,
        default=(0, 1, 2),
        metavar="N,N,...",
        help="train once with each of these seeds (default: 0,1,2)",
    )
    p.add_argument("--split", default="val", help="part of VOC to evaluate on (default: val)")
    add_overrides(p, "model.output_stride=8", "Recipe in model/train/recipe.py")
    add_workers(p, 0)
    p.add_argument(
        "--docs",
        type=Path,
        default=Path("docs"),
        metavar="DIR",
        help="folder that `write` writes to (default: docs)",
    )
    p.add_argument("--dry-run", action="store_true", help="list the parts and their cost, and stop")
    return p


def describe(points: Sequence[Point], overrides: list[str]) -> str:
    """One line per part: crops to train on, and the cost of its evaluation in single passes."""
    config = recipe.read(PRESET, overrides)
    crops = config.iterations * config.batch_size
    lines, trained = [], {BUNDLED.name}
    for point in points:
        if point.run not in trained:
            trained.add(point.run)
            lines.append(f"train {point.run:24} {crops} crops of {config.augment.crop} pixels")
        cost = sum(s * s for s in MULTI_SCALE) if point.multi_scale else 1.0
        cost *= 2 if point.flip else 1
        lines.append(f"evaluate {point.name:24} {cost:.1f} passes at stride {point.output_stride}")
    total = (len(trained) - 1) * crops
    return "\n".join([*lines, f"{len(trained) - 1} trainings, {total} crops"])


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        if args.study == "write":
            print(f"wrote {pages.write(args.out, args.docs)}")
            return 0
        points = STUDIES[args.study](args.seeds)
        if args.dry_run:
            print(describe(points, args.overrides))
            return 0
        if args.data is None:
            p.error(f"{args.study}: give --data DIR, the folder that holds VOCdevkit")
        settings = StudySettings(
            args.data, args.out, tuple(args.overrides), args.split, args.workers
        )
        args.out.mkdir(parents=True, exist_ok=True)
        for point in points:
            run(point, settings)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (StudyError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
