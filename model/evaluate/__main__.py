"""Mean IoU of a checkpoint: `python -m model.evaluate CKPT --dataset voc --data DIR --split val`.

As the paper evaluates: one confusion matrix over the whole split, void pixels
ignored, photos at their own size, padded with the mean pixel to the crop size.
--trimap judges a band around the void label as well, --boundary the edges of
each class; all of it in one pass over the pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model import arguments, checkpoint, memory
from model.data.dataset import DATASETS, Dataset, DatasetError, find, read_pair
from model.evaluate.boundary import BoundaryIoU
from model.evaluate.metrics import Confusion, Metric
from model.evaluate.predict import label_map
from model.evaluate.trimap import Trimap

PLOT_SUFFIXES = (".png", ".svg", ".pdf")

Predictor = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def score(dataset: Dataset, predict: Predictor, *others: Metric) -> Confusion:
    """Compare `predict` ((H, W, 3) uint8 -> (H, W) uint8) with every mask of a split.

    The other metrics see the same pictures, so that nothing is predicted twice. Raises
    DatasetError for a mask that does not fit its photo.
    """
    confusion = Confusion(len(dataset.classes))
    for pair in tqdm(dataset.pairs, unit="image", disable=not sys.stderr.isatty()):
        photo, truth = read_pair(dataset, pair)
        labels = predict(np.asarray(photo))
        for metric in (confusion, *others):
            metric.add(truth, labels)
    return confusion


def figures(confusion: Confusion, dataset: Dataset) -> dict[str, Any]:
    """The result as JSON: `miou`, `iou` by class name, `pixels` and where they come from."""
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "images": len(dataset.pairs),
        "miou": round(confusion.miou(), 6),
        "iou": by_name(dataset.classes, confusion.iou()),
        "pixels": confusion.pixels,
    }


def by_name(classes: Sequence[str], iou: NDArray[np.float64]) -> dict[str, float | None]:
    """IoU by class name, None where a class never occurs."""
    return {
        name: None if np.isnan(value) else round(float(value), 6)
        for name, value in zip(classes, iou, strict=True)
    }


def evaluate(dataset: Dataset, predict: Predictor, args: argparse.Namespace) -> dict[str, Any]:
    """All figures that `add_evaluation_arguments` offers and the command line asks for."""
    trimap = Trimap(len(dataset.classes), args.trimap) if args.trimap else None
    boundary = BoundaryIoU(len(dataset.classes)) if args.boundary else None
    others = [metric for metric in (trimap, boundary) if metric is not None]
    result = figures(score(dataset, predict, *others), dataset)
    if trimap is not None:
        result["trimap"] = {str(w): round(miou, 6) for w, miou in trimap.miou().items()}
    if boundary is not None:
        result["boundary_miou"] = round(boundary.miou(), 6)
        result["boundary_iou"] = by_name(dataset.classes, boundary.iou())
    return result


def show(result: dict[str, Any]) -> str:
    """A table to read."""
    edges = result.get("boundary_iou", {})
    rows = ["class                 IoU   boundary IoU"] if edges else []
    rows += [
        f"{name:16} {_cell(iou)}" + (f"   {_cell(edges[name])}" if edges else "")
        for name, iou in result["iou"].items()
    ]
    total = f"mIoU {result['miou']:.4f} on {result['images']} images of {result['dataset']}"
    rows.append(f"{total} {result['split']} ({result['pixels']} pixels)")
    if edges:
        rows.append(f"boundary mIoU {result['boundary_miou']:.4f}")
    if "trimap" in result:
        rows.append("trimap width   mIoU in the band")
        rows += [f"{width:>9} px   {miou:.4f}" for width, miou in result["trimap"].items()]
    return "\n".join(rows)


def _cell(iou: float | None) -> str:
    return "absent" if iou is None else f"{iou:.4f}"


def add_evaluation_arguments(p: argparse.ArgumentParser) -> None:
    """The options that model.evaluate and export.evaluate share."""
    p.add_argument("--dataset", default="voc", choices=sorted(DATASETS))
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
    """End with a usage error where --plot could not be drawn, before any work is done."""
    if args.plot is None:
        return
    if not args.trimap:
        p.error("--plot draws the trimap curve: give --trimap 1,5,10,20,40 with it")
    if args.plot.suffix not in PLOT_SUFFIXES:
        p.error(f"--plot {args.plot}: the name must end in one of {', '.join(PLOT_SUFFIXES)}")


def report(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the table; write JSON and plot where they are asked for."""
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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.evaluate runs/light/model --data DATA --output-stride 8",
    )
    p.add_argument("checkpoint", type=Path)
    add_evaluation_arguments(p)
    arguments.add_passes(p)
    arguments.add_windows(p)
    p.add_argument("--record", action="store_true", help="keep the figures in the JSON")
    arguments.add_device(p)
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    check_plot(p, args)
    overlap = arguments.overlap(p, args)
    try:
        net = checkpoint.load_on(args.device, args.checkpoint, args.output_stride)
        dataset = find(args.dataset, args.data, args.split)
        check_classes(checkpoint.read_card(args.checkpoint).classes, dataset)
        predict = partial(label_map, net, scales=args.scales, flip=args.flip, overlap=overlap)
        result = evaluate(dataset, predict, args) | {
            "output_stride": net.config.output_stride,
            "scales": list(args.scales),
            "flip": args.flip,
            "sliding_overlap": overlap,
        }
        report(result, args)
        if args.record:
            checkpoint.record_metrics(args.checkpoint, result)
    except (checkpoint.CheckpointError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_classes(classes: Sequence[str], dataset: Dataset) -> None:
    """Raise DatasetError when a model cannot be judged by a data set's masks.

    Other names may be other spellings; the same ones in another order mean other ids.
    """
    theirs = dataset.classes
    if len(classes) != len(theirs):
        raise DatasetError(
            f"the model has {len(classes)} classes, dataset {dataset.name!r} has {len(theirs)}"
        )
    if sorted(classes) == sorted(theirs) and tuple(classes) != theirs:
        odd = next(i for i, name in enumerate(theirs) if name != classes[i])
        raise DatasetError(
            f"class {odd} is {classes[odd]!r} in the model and {theirs[odd]!r} in dataset "
            f"{dataset.name!r}: bring the data set's classes into the model's order"
        )


if __name__ == "__main__":
    memory.keep_freed_on_a_cpu()
    raise SystemExit(main())
