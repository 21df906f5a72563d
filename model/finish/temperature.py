"""Calibrate a network's confidence: `python -m model.temperature CKPT -o OUT`.

Of the pixels with confidence 80 %, 80 % should be right. The confidence of trained networks is
usually too high; that of distilled networks is often too low. This command divides all logits by
one number, the temperature, which gives the least cross-entropy on photos with true masks (Guo et
al. 2017, "On Calibration of Modern Neural Networks"). The division changes the weights of the
last convolution, so files exported from the result need no further step. The labels of a single
pass stay the same. If probabilities of several passes are averaged (scales, mirroring, windows), a
few labels change.

Use photos that the network was not trained on. The printed errors are measured on photos that
the temperature was not fitted to: the even photos with the temperature of the odd ones, and the
odd photos with that of the even ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from tqdm import tqdm

from model import arguments, checkpoint, memory
from model.checkpoint import CheckpointError
from model.data.dataset import Dataset, DatasetError, read_source
from model.data.survey import expect_classes, survey
from model.evaluate.options import open_dataset
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import fitted, full_logits, nearest, prepare

BINS = 15  # as in Guo et al.
COOLEST, HOTTEST = 0.05, 20.0
LAST = ("logits.weight", "logits.bias")


@dataclass(frozen=True)
class Pixels:
    """Pixels drawn from one photo."""

    logits: NDArray[np.float32]  # (N, K)
    truth: NDArray[np.intp]  # (N,)


def drawn(
    net: DeepLabV3Plus, dataset: Dataset, count: int, rng: np.random.Generator
) -> list[Pixels]:
    """Draw up to `count` labelled pixels of each photo, segmented as in the service.

    Raises DatasetError for a damaged photo, and if no pixel is labelled.
    """
    found = []
    for pair in tqdm(dataset.pairs, unit="photo", disable=not sys.stderr.isatty()):
        source, truth = read_source(dataset, pair)
        photo, _ = fitted(source, net.config.crop_size)
        truth = truth[nearest(truth.shape[0], photo.shape[0])]
        truth = truth[:, nearest(truth.shape[1], photo.shape[1])]
        rows, columns = np.nonzero(truth < net.config.num_classes)
        some = rng.choice(len(rows), min(count, len(rows)), replace=False)
        rows, columns = rows[some], columns[some]
        padded, _ = prepare(net, photo, (1.0,), net.config.crop_size, None)
        with torch.inference_mode():
            logits = full_logits(net, padded, 1.0)[0, :, rows, columns]
        found.append(Pixels(logits.T.float().cpu().numpy(), truth[rows, columns].astype(np.intp)))
    if not any(len(each.truth) for each in found):
        raise DatasetError(f"{dataset.name}: no pixel of its masks has a class: all are void")
    return found


def joined(photos: list[Pixels]) -> Pixels:
    return Pixels(
        np.concatenate([each.logits for each in photos]),
        np.concatenate([each.truth for each in photos]),
    )


def log_probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """(N, K) logits -> (N, K) logarithms of the softmax at a temperature."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def cross_entropy(pixels: Pixels, temperature: float) -> float:
    """The mean over the pixels, in nats."""
    found = log_probabilities(pixels.logits, temperature)
    return -float(np.take_along_axis(found, pixels.truth[:, None], axis=1).mean())


def calibration_error(pixels: Pixels, temperature: float) -> float:
    """Return the mean distance of confidence and accuracy over BINS, weighted by their pixels."""
    found = log_probabilities(pixels.logits, temperature)
    confidence = np.exp(found.max(axis=1))
    right = found.argmax(axis=1) == pixels.truth
    place = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    apart = np.bincount(place, confidence - right, minlength=BINS)
    return float(np.abs(apart).sum() / len(right))


def fit(pixels: Pixels) -> float:
    """Return the temperature, from COOLEST to HOTTEST, with the least cross-entropy."""
    best = minimize_scalar(
        lambda logarithm: cross_entropy(pixels, math.exp(logarithm)),
        bounds=(math.log(COOLEST), math.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return math.exp(float(best.x))


def measured(photos: list[Pixels]) -> dict[str, float]:
    """Return both errors before and after, on photos that the temperature was not fitted to."""
    halves = [joined(half) for half in (photos[::2], photos[1::2])]
    found: dict[str, list[float]] = {}
    for ours, others in (halves, halves[::-1]):
        warm = fit(ours)
        for name, measure in (
            ("expected_calibration_error", calibration_error),
            ("cross_entropy", cross_entropy),
        ):
            found.setdefault(f"{name}_before", []).append(measure(others, 1.0))
            found.setdefault(name, []).append(measure(others, warm))
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.temperature",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.temperature runs/light/model -o runs/sure/model "
        "--data DATA --split val",
    )
    arguments.add_checkpoint(p)
    arguments.add_out(p)
    arguments.add_dataset(p)
    p.add_argument(
        "--pixels",
        type=arguments.positive,
        default=5000,
        metavar="N",
        help="pixels to draw from each photo (default: 5000)",
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the drawn pixels (default: 0)")
    arguments.add_device(p)
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        net = checkpoint.load_on(args.device, args.checkpoint)
        card = checkpoint.read_card(args.checkpoint)
        dataset = open_dataset(args, card.classes, card.model.samples, card.training.get("dataset"))
        expect_classes(survey(dataset))
        if len(dataset.pairs) < 2:
            raise DatasetError(f"{dataset.name} {args.split} has one photo: give two or more")
        with memory.advising(arguments.SMALLER_CROP):
            photos = drawn(net, dataset, args.pixels, np.random.default_rng(args.seed))
        found = report(photos, dataset)
        state = net.state_dict()
        for name in LAST:
            state[name] = state[name] / found["temperature"]
        training = card.training | {"calibrated": found}
        card = card.model_copy(update={"training": training, "metrics": {}})
        path = checkpoint.save(args.out, state, card)
    except (CheckpointError, DatasetError, memory.ShortageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2))
    print(f"wrote {path}", file=sys.stderr)
    return 0


def report(photos: list[Pixels], dataset: Dataset) -> dict[str, Any]:
    """Format the temperature of all photos, and its effect on photos that it was not fitted to."""
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "images": len(photos),
        "temperature": round(fit(joined(photos)), 4),
        **measured(photos),
    }


script = memory.keeping_freed(main)
