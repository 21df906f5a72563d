"""Calibrate an exported file: `python -m export.calibrate FILE.onnx --data DIR`.

It runs the file on photos with true masks, and writes into its contract

- for each class the confidence that gives the best F1 of its pixels, for `threshold=best`; 0 where
  such thresholds gain nothing on photos that they were not chosen on;
- how often the truth is among the classes above a probability, for `coverage=` (only for files
  exported with `--probabilities`).

The graph does not change. Run it again after every export, on photos that the network was not
trained on. It also measures both on photos that it has not calibrated on: the even photos with the
values of the odd ones, and the odd photos with those of the even ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from export import writer
from export.evaluate import decoded
from model import arguments, checkpoint
from model.checkpoint import CheckpointError
from model.data.dataset import Dataset, DatasetError, read_source
from model.data.survey import expect_classes, survey
from model.evaluate.options import open_dataset
from model.network.inference import Photo, Source
from postprocess.grid import Grid, least_for
from postprocess.results.outputs import Result
from service.errors import StartupError
from service.images import join
from service.images.imaging import fit
from service.images.prepare import Prepared
from service.inference import cpus
from service.inference.contract import Calibration, Contract
from service.inference.digest import contract_digest
from service.inference.engine import Engine, EngineOptions

LEVELS = 256  # of confidence and probabilities
FOLDS = 4  # parts of the photos; each is evaluated with the thresholds of the others
COVERAGES = (0.8, 0.9, 0.95, 0.99)  # measured and printed

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]


class CalibrateError(ValueError):
    """The file cannot be calibrated; the message says what to do."""


@dataclass(frozen=True)
class PhotoCounts:
    """The counts of one photo, each by confidence or probability, 0 to 255."""

    predicted: Counts  # (K, 256) pixels with this label and confidence
    right: Counts  # (K, 256) those whose label is true
    true: Counts  # (K,) pixels of each class
    missed: Shares | None  # (256,) share of points whose truth has a probability below


def observe(result: Result, truth: NDArray[np.uint8]) -> PhotoCounts:
    """Compare the result for a photo with its true mask (H, W); ids >= K are void."""
    classes = len(result.contract.classes)
    labels, confidence = result.labels.image, result.confidence
    assert confidence is not None
    judged = truth < classes
    where = labels[judged].astype(np.int64) * LEVELS + confidence.image[judged]
    right = where[labels[judged] == truth[judged]]

    def counted(places: Counts) -> Counts:
        return np.bincount(places, minlength=classes * LEVELS).reshape(classes, LEVELS)

    return PhotoCounts(
        counted(where),
        counted(right),
        np.bincount(truth[judged], minlength=classes),
        None if result.grid is None else missed(result.grid, truth),
    )


def missed(grid: Grid, truth: NDArray[np.uint8]) -> Shares | None:
    """For each threshold the share of a grid's points whose truth is not in the set, (256,)."""
    classes, rows, columns = grid.values.shape
    (right, _, x), (_, down, y) = grid.transform
    height, width = truth.shape
    at_y = np.clip(y + down * np.arange(rows), 0, height - 1).astype(np.intp)
    at_x = np.clip(x + right * np.arange(columns), 0, width - 1).astype(np.intp)
    there = truth[at_y][:, at_x]
    judged = there < classes
    if not judged.any():
        return None
    known = np.where(judged, there, 0)[None]
    chance = np.take_along_axis(grid.values, known, axis=0)[0]
    chance = np.where(chance == grid.values.max(axis=0), LEVELS - 1, chance)  # always in the set
    below = np.cumsum(np.bincount(chance[judged], minlength=LEVELS)) / judged.sum()
    return np.concatenate([[0.0], below[:-1]])


def best_f1(photos: list[PhotoCounts]) -> tuple[list[float], list[float], list[float]]:
    """For each class the confidence with the best F1, that F1, and the F1 of all its pixels."""
    predicted = sum((each.predicted for each in photos), np.zeros_like(photos[0].predicted))
    right = sum((each.right for each in photos), np.zeros_like(photos[0].right))
    true = sum((each.true for each in photos), np.zeros_like(photos[0].true))
    kept, hits = (each[:, ::-1].cumsum(axis=1)[:, ::-1] for each in (predicted, right))
    f1 = 2 * hits / np.maximum(1, kept + true[:, None])
    best = f1.argmax(axis=1)  # the lowest of equal ones
    chosen = np.take_along_axis(f1, best[:, None], axis=1)[:, 0]
    return (best / (LEVELS - 1)).round(4).tolist(), chosen.tolist(), f1[:, 0].tolist()


def proven_f1(photos: list[PhotoCounts]) -> list[float]:
    """The thresholds of `best_f1`, but 0 for classes that thresholds do not help on other photos.

    Each of FOLDS parts is evaluated with the thresholds of the other parts. F1 must rise on
    average, and fall in one part at most. Without this, a rare class gets a threshold by chance.
    """
    gains = np.zeros((FOLDS, len(photos[0].true)))
    for part in range(FOLDS):
        judged = photos[part::FOLDS]
        others = [each for index, each in enumerate(photos) if index % FOLDS != part]
        if judged and others:
            after = f1_at(judged, best_f1(others)[0])
            gains[part] = after - f1_at(judged, [0.0] * len(after))
    proven = (gains.mean(axis=0) > 0) & ((gains < 0).sum(axis=0) <= 1)
    kept: list[float] = np.where(proven, best_f1(photos)[0], 0).tolist()
    return kept


def f1_at(photos: list[PhotoCounts], thresholds: Sequence[float]) -> Shares:
    """F1 of each class, (K,), of its pixels with at least its threshold of confidence."""
    classes = np.arange(len(thresholds))
    levels = np.rint(np.multiply(thresholds, LEVELS - 1)).astype(np.intp)
    kept, hits, true = np.zeros((3, len(classes)))
    for each in photos:
        kept += each.predicted[:, ::-1].cumsum(axis=1)[:, ::-1][classes, levels]
        hits += each.right[:, ::-1].cumsum(axis=1)[:, ::-1][classes, levels]
        true += each.true
    return 2 * hits / np.maximum(1, kept + true)


def calibration(photos: list[PhotoCounts], dataset: Dataset) -> Calibration:
    """Compute what the contract stores, from some photos."""
    curves = [each.missed for each in photos if each.missed is not None]
    mean = np.mean(curves, axis=0).round(6) if curves else None
    return Calibration(
        dataset=dataset.name,
        split=dataset.split,
        images=len(curves) or len(photos),
        best_f1=tuple(proven_f1(photos)),
        missed=None if mean is None else tuple(mean.tolist()),
    )


def measured(photos: list[PhotoCounts], dataset: Dataset) -> dict[str, Any]:
    """Measure coverage and F1 on photos that the thresholds do not come from; at least two.

    F1 is None if no pixel of these photos has a class.
    """
    halves = photos[::2], photos[1::2]
    covered: dict[str, list[float]] = {}
    gains = []
    for ours, others in (halves, halves[::-1]):
        found = calibration(ours, dataset)
        if (gain := _f1_gain(others, found)) is not None:
            gains.append(gain)
        for coverage in COVERAGES if found.missed is not None else ():
            least = least_for(coverage, found.missed or (), found.images)
            curves = [each.missed for each in others if each.missed is not None]
            if least is not None and curves:
                share = 1 - float(np.mean([curve[least] for curve in curves]))
                covered.setdefault(str(coverage), []).append(share)
    return {
        "coverage": {name: round(float(np.mean(found)), 4) for name, found in covered.items()},
        "mean_f1": _mean([before for before, _ in gains]),
        "mean_f1_at_best": _mean([after for _, after in gains]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _f1_gain(photos: list[PhotoCounts], found: Calibration) -> tuple[float, float] | None:
    """Return the mean F1 over the classes that occur, of all pixels and of confident ones.

    None if no class occurs.
    """
    occurs = sum((each.true for each in photos), np.zeros_like(photos[0].true)) > 0
    if not occurs.any():
        return None
    before, after = (
        f1_at(photos, thresholds)[occurs]
        for thresholds in ([0.0] * len(found.best_f1), found.best_f1)
    )
    return float(before.mean()), float(after.mean())


def segmented(engine: Engine, photo: Photo | Source) -> Result:
    """Segment an upright photo as the service does, with all outputs of the model."""
    target = engine.contract.input
    found = decoded(photo, target)
    prepared = Prepared(found.photo, fit(found, target))
    predictions = engine.predict(prepared.pixels[0][None], "probabilities")
    return join.result(prepared, predictions, engine.contract)


def run(engine: Engine, dataset: Dataset) -> list[PhotoCounts]:
    """Observe every photo of a data set, as the service segments it."""
    found = []
    for pair in tqdm(dataset.pairs, unit="photo", disable=not sys.stderr.isatty()):
        photo, truth = read_source(dataset, pair)
        found.append(observe(segmented(engine, photo), truth))
    return found


def write(path: Path, contract: Contract) -> None:
    """Replace the contract of a file, atomically."""
    model = onnx.load(path)
    unsealed = contract.model_copy(update={"contract_sha256": None})
    digest = contract_digest(unsealed.model_dump_json())
    writer.write(model, unsealed.model_copy(update={"contract_sha256": digest}), path)


def expect_same(path: Path, contract: Contract) -> None:
    """Raise CalibrateError unless a file was exported from a checkpoint and gives its labels."""
    checkpoint.read_card(path)
    if contract.best_iou is not None or contract.scales != (1.0,) or contract.flip:
        raise CalibrateError(
            "--checkpoint: the file was exported with --best-iou, --scales or --flip, so its "
            "confidences are not those of the checkpoint alone"
        )
    if contract.checkpoint_sha256 != checkpoint.digest(path):
        raise CalibrateError(f"--checkpoint {path}: the file was exported from other weights")


def write_beside(path: Path, found: Calibration) -> None:
    """Write a calibration beside the checkpoint."""
    own = checkpoint.Calibration(weights_sha256=checkpoint.digest(path), **found.model_dump())
    checkpoint.write_calibration(path, own)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m export.calibrate models/light.onnx --data DATA --split val",
    )
    p.add_argument("file", type=Path, metavar="FILE.onnx", help="exported file")
    arguments.add_dataset(p)
    p.add_argument(
        "--photos",
        type=arguments.count,
        metavar="N",
        help="use N photos, evenly spread (default: all)",
    )
    p.add_argument(
        "--checkpoint",
        type=Path,
        metavar="NAME",
        help="the checkpoint that the file was exported from: also write NAME.calibration.json, "
        "for model.predict and model.segment",
    )
    p.add_argument("--dry-run", action="store_true", help="measure, and do not change the file")
    devices = ("auto", "cpu", "openvino", "cuda")
    p.add_argument(
        "--device",
        default="cpu",
        choices=devices,
        help="engine that runs the file, as for the service (default: cpu)",
    )
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        engine = Engine(args.file, EngineOptions(args.device, threads=cpus.available()))
        if not engine.contract.confidence:
            raise CalibrateError(f"{args.file} has no confidence: export it with --confidence")
        if args.checkpoint is not None:
            expect_same(args.checkpoint, engine.contract)
        dataset = open_dataset(args, engine.contract.classes, engine.contract.input.samples)
        expect_classes(survey(dataset))
        if args.photos:
            dataset = dataset.thinned(args.photos)
        if len(dataset.pairs) < 2:
            raise CalibrateError(
                "one photo is too few: the thresholds of each half are tried on the other half"
            )
        photos = run(engine, dataset)
        found = calibration(photos, dataset)
        if not args.dry_run:
            write(args.file, engine.contract.model_copy(update={"calibration": found}))
            if args.checkpoint is not None:
                write_beside(args.checkpoint, found)
    except (StartupError, DatasetError, CalibrateError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    names = engine.contract.classes
    report = {
        "images": found.images,
        "best_f1": dict(zip(names, found.best_f1, strict=True)),
        "on_other_photos": measured(photos, dataset),
    }
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
