"""Mean IoU of a checkpoint: `python -m model.evaluate CKPT --dataset voc --data DIR --split val`.

As the paper evaluates: one confusion matrix over the whole split, void pixels
ignored, photos at their own size, padded with the mean pixel to the crop size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model import arguments, checkpoint
from model.data.dataset import DATASETS, Dataset, DatasetError, find, read_mask
from model.data.photo import read_photo
from model.metrics import Confusion
from model.predict import label_map

Predictor = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def score(dataset: Dataset, predict: Predictor) -> Confusion:
    """Compare `predict` ((H, W, 3) uint8 -> (H, W) uint8) with every mask of a split."""
    confusion = Confusion(len(dataset.classes))
    for pair in tqdm(dataset.pairs, unit="image", disable=not sys.stderr.isatty()):
        truth = read_mask(pair.mask, classes=len(dataset.classes), void=dataset.void)
        confusion.add(truth, predict(read_photo(pair.image)))
    return confusion


def figures(confusion: Confusion, dataset: Dataset) -> dict[str, Any]:
    """The result as JSON: `miou`, `iou` by class name, `pixels` and where they come from."""
    iou = {
        name: None if np.isnan(value) else round(float(value), 6)
        for name, value in zip(dataset.classes, confusion.iou(), strict=True)
    }
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "images": len(dataset.pairs),
        "miou": round(confusion.miou(), 6),
        "iou": iou,
        "pixels": confusion.pixels,
    }


def show(result: dict[str, Any]) -> str:
    """A table to read."""
    rows = [
        f"{name:16} {'absent' if iou is None else f'{iou:.4f}'}"
        for name, iou in result["iou"].items()
    ]
    total = f"mIoU {result['miou']:.4f} on {result['images']} images of {result['dataset']}"
    return "\n".join([*rows, f"{total} {result['split']} ({result['pixels']} pixels)"])


def add_dataset_arguments(p: argparse.ArgumentParser) -> None:
    """The options that model.evaluate and export.evaluate share."""
    p.add_argument("--dataset", default="voc", choices=sorted(DATASETS))
    p.add_argument("--data", type=Path, required=True, help="folder that holds the data set")
    p.add_argument("--split", default="val")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures; - is stdout")


def report(result: dict[str, Any], target: Path | None) -> None:
    """Print the table, or write the JSON where it is asked for."""
    if target is None or str(target) != "-":
        print(show(result))
    if target is not None:
        text = json.dumps(result, indent=2) + "\n"
        if str(target) == "-":
            sys.stdout.write(text)
        else:
            target.write_text(text, encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.evaluate runs/light/model --data DATA --output-stride 8",
    )
    p.add_argument("checkpoint", type=Path)
    add_dataset_arguments(p)
    p.add_argument("--output-stride", type=int, choices=(8, 16, 32), help="default: as trained")
    p.add_argument("--scales", type=arguments.scales, default=(1.0,), metavar="S,S,...")
    p.add_argument("--flip", action="store_true", help="average with the mirrored photo")
    p.add_argument("--record", action="store_true", help="keep the figures in the JSON")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        net = checkpoint.load(args.checkpoint, args.output_stride)
        dataset = find(args.dataset, args.data, args.split)
        check_classes(net.config.num_classes, dataset)
        confusion = score(dataset, partial(label_map, net, scales=args.scales, flip=args.flip))
    except (checkpoint.CheckpointError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = figures(confusion, dataset) | {
        "output_stride": net.config.output_stride,
        "scales": list(args.scales),
        "flip": args.flip,
    }
    report(result, args.json)
    if args.record:
        checkpoint.record_metrics(args.checkpoint, result)
    return 0


def check_classes(classes: int, dataset: Dataset) -> None:
    """Raise DatasetError when a model cannot be judged by a data set's masks."""
    if classes != len(dataset.classes):
        raise DatasetError(
            f"the model has {classes} classes, dataset {dataset.name!r} has {len(dataset.classes)}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
