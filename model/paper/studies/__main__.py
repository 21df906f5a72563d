"""Test the paper's claims on small networks: `python -m model.studies STUDY --data DIR --out DIR`.

With the bundled network:
  boundary   its decoder against bilinear upsampling, with trimap curves (figure 5a)
  inference  output strides, scales and mirrored photos (table 3)

With networks that are trained for it, once for each seed:
  decoder    the decoder against bilinear upsampling, with trimap curves (figure 5a)
  stride     evaluation at output stride 16 against 8 (tables 3 and 5)
  scales     scales and mirrored photos (tables 3 and 5)
  widths     channels of the decoder's low-level feature (table 1)
  structure  convolutions of the decoder (table 2)
  separable  separable against dense convolutions in ASPP and decoder (table 5)
  coarse     training at output stride 32 (table 3)
  pooling    the image-level feature (table 7a)
  labels     labels reduced in training instead of logits resized (section 4.1)

With backbones alone, trained from random weights on photos by class:
  backbones  ResNet-101 and Xception-65, top-1 and top-5 error (table 4); photos are those of
             --images (ImageNet), or those of VOC that show a single class

all runs every study but backbones, the most important first; write writes docs/studies.md from the
results. All together takes days of CPU time: --dry-run lists the parts. Parts that are
done are skipped, so start a study again to continue an interrupted run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from model import arguments, memory
from model.data.dataset import DatasetError
from model.network.deeplab import BACKBONES
from model.paper.studies import backbones, pages
from model.paper.studies.backbones import BackboneSettings
from model.paper.studies.plan import BUNDLED, MULTI_SCALE, STUDIES, Point
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
    p.add_argument("study", choices=[*STUDIES, "backbones", "write"], help="what to do, see above")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder that holds VOCdevkit")
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for runs and results"
    )
    p.add_argument(
        "--seeds",
        type=seeds,
        default=(0, 1, 2),
        metavar="N,N,...",
        help="train once with each of these seeds (default: 0,1,2)",
    )
    p.add_argument("--split", default="val", help="part of VOC to evaluate on (default: val)")
    arguments.add_photos(p, "evaluate on")
    add_overrides(p, "model.output_stride=8", "Recipe in model/train/recipe.py")
    add_workers(p, 0)
    p.add_argument(
        "--docs",
        type=Path,
        default=Path("docs"),
        metavar="DIR",
        help="folder that `write` writes to (default: docs)",
    )
    table4 = p.add_argument_group("for the study `backbones`")
    table4.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder with photos in train/CLASS/ and val/CLASS/ (default: VOC's, from --data)",
    )
    table4.add_argument(
        "--backbones",
        type=names,
        default=(),
        metavar="NAME,...",
        help="backbones to compare instead of the paper's, such as mobilenet_v2",
    )
    p.add_argument("--dry-run", action="store_true", help="list the parts and their cost, and stop")
    return p


def seeds(text: str) -> tuple[int, ...]:
    """Parse different numbers from 0 on: a repeated seed would count as two."""
    found = arguments.integers(text)
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different seeds such as 0,1,2")
    return found


def names(text: str) -> tuple[str, ...]:
    """Backbones that `model.pretrain` knows."""
    found = tuple(text.split(","))
    if unknown := [name for name in found if name not in BACKBONES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(BACKBONES)}")
    return found


def backbone_settings(p: argparse.ArgumentParser, args: argparse.Namespace) -> BackboneSettings:
    """The settings of table 4; raises DatasetError."""
    if args.data is None and args.images is None:
        p.error("backbones: give --images DIR with train/CLASS/ and val/CLASS/, or --data DIR")
    if args.dry_run or args.photos:
        p.error("backbones: --dry-run and --photos are for the other studies")
    args.out.mkdir(parents=True, exist_ok=True)
    return BackboneSettings(
        args.images or backbones.photos_of_voc(args.data, args.out),
        args.out,
        args.seeds,
        backbones.entries(args.backbones),
        tuple(args.overrides),
        args.workers,
    )


def describe(points: Sequence[Point], overrides: list[str]) -> str:
    """One line per part: crops to train on, and the cost of its evaluation in single passes."""
    lines, trained, total = [], {BUNDLED.name}, 0
    for point in points:
        if point.run not in trained:
            trained.add(point.run)
            config = recipe.read(point.net.preset, [*point.net.overrides, *overrides])
            crops = config.iterations * config.batch_size
            total += crops
            lines.append(f"train {point.run:24} {crops} crops of {config.augment.crop} pixels")
        cost = sum(s * s for s in MULTI_SCALE) if point.multi_scale else 1.0
        cost *= 2 if point.flip else 1
        lines.append(f"evaluate {point.name:24} {cost:.1f} passes at stride {point.output_stride}")
    return "\n".join([*lines, f"{len(trained) - 1} trainings, {total} crops"])


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        if args.study == "write":
            print(f"wrote {pages.write(args.out, args.docs)}")
            return 0
        if args.study == "backbones":
            print(backbones.run(backbone_settings(p, args)))
            return 0
        points = [p._replace(photos=args.photos) for p in STUDIES[args.study](args.seeds)]
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


script = memory.keeping_freed(main)
