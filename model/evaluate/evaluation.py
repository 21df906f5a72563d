"""Compare predicted label maps with the masks of a data set.

One confusion matrix covers the whole split, and void pixels are ignored, as in the
paper. Trimap and boundary IoU come from the same pass over the photos.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.data.dataset import Dataset, DatasetError, read_source
from model.data.photo import PhotoFile, upright_size
from model.evaluate.boundary import BoundaryIoU
from model.evaluate.metrics import Confusion, Metric
from model.evaluate.trimap import Trimap

# Keys of the JSON and their titles in the table. F1 and Dice are one figure by two names.
COLUMNS = {"dice": "F1 = Dice", "precision": "precision", "recall": "recall"}

Predictor = Callable[[PhotoFile], NDArray[np.uint8]]


def score(dataset: Dataset, predict: Predictor, *others: Metric) -> Confusion:
    """Compare `predict` (a photo's file -> (H, W) uint8) with every mask of a split.

    The other metrics see the same pictures, so that nothing is predicted twice. Raises
    DatasetError for a mask that does not fit its photo, and OSError for a damaged file.
    """
    confusion = Confusion(len(dataset.classes))
    for pair in tqdm(dataset.pairs, unit="image", disable=not sys.stderr.isatty()):
        photo, truth = read_source(dataset, pair)
        labels = predict(photo)
        for metric in (confusion, *others):
            metric.add(truth, labels)
    return confusion


def figures(confusion: Confusion, dataset: Dataset) -> dict[str, Any]:
    """The result as JSON: `miou`, other figures by class name, and where they come from."""
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "images": len(dataset.pairs),
        "miou": round(confusion.miou(), 6),
        "iou": by_name(dataset.classes, confusion.iou()),
        "pixel_accuracy": round(confusion.accuracy(), 6),
        "precision": by_name(dataset.classes, confusion.precision()),
        "recall": by_name(dataset.classes, confusion.recall()),
        "dice": by_name(dataset.classes, confusion.dice()),
        "pixels": confusion.pixels,
    }


def larger(
    dataset: Dataset, crop_size: tuple[int, int], args: argparse.Namespace
) -> dict[str, Any]:
    """The number of photos above the crop size (H, W) and how they were predicted, for JSON."""
    count = sum(
        height > crop_size[0] or width > crop_size[1]
        for width, height in (upright_size(pair.image, dataset.samples) for pair in dataset.pairs)
    )
    how = "windows" if args.sliding else "whole" if args.whole else "shrunk"
    return {"larger_photos": {"count": count, "judged": how, "crop_size": list(crop_size)}}


def by_name(classes: Sequence[str], iou: NDArray[np.float64]) -> dict[str, float | None]:
    """IoU by class name, None where a class never occurs."""
    return {
        name: None if np.isnan(value) else round(float(value), 6)
        for name, value in zip(classes, iou, strict=True)
    }


def evaluate(dataset: Dataset, predict: Predictor, args: argparse.Namespace) -> dict[str, Any]:
    """Measure all figures that the command line asks for."""
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
    """The figures as a text table."""
    edges = result.get("boundary_iou", {})
    columns = {"IoU": result["iou"]}
    columns |= {name: result[key] for key, name in COLUMNS.items() if key in result}
    columns |= {"boundary IoU": edges} if edges else {}
    rows = [f"{'class':16} " + "  ".join(f"{title:>9}" for title in columns)]
    rows += [
        f"{name:16} " + "  ".join(f"{_cell(column[name]):>9}" for column in columns.values())
        for name in result["iou"]
    ]
    if "pixel_accuracy" in result:
        rows.append(f"pixel accuracy {result['pixel_accuracy']:.4f}")
    images = f"{result['images']} images"
    if whole := result.get("images_in_split"):
        images = f"{result['images']} of {whole} images, evenly spread,"
    total = f"mIoU {result['miou']:.4f} on {images} of {result['dataset']}"
    rows.append(f"{total} {result['split']} ({result['pixels']} pixels)")
    if (photos := result.get("larger_photos")) and photos["count"]:
        height, width = photos["crop_size"]
        how = {
            "shrunk": "were shrunk to it, as the service does (otherwise: --whole, --sliding)",
            "whole": "were evaluated whole; the service shrinks them and may score differently",
            "windows": "were cut into windows, as the service does with fit=sliding",
        }[photos["judged"]]
        rows.append(f"{photos['count']} photos larger than {height} x {width} (H x W) {how}")
    if edges:
        rows.append(f"boundary mIoU {result['boundary_miou']:.4f}")
    if "trimap" in result:
        rows.append("trimap width   mIoU in the band")
        rows += [f"{width:>9} px   {miou:.4f}" for width, miou in result["trimap"].items()]
    return "\n".join(rows)


def _cell(iou: float | None) -> str:
    return "absent" if iou is None else f"{iou:.4f}"


def check_classes(classes: Sequence[str], dataset: Dataset) -> None:
    """Raise DatasetError if a data set's masks do not fit a model's classes.

    Different names may be other spellings. The same names in another order mean other ids.
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
