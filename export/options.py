"""Turn the command line of `python -m export` into `ExportOptions`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from export.quantize import Quantization, QuantizationError, photos_in
from export.writer import ExportOptions, Size
from model import arguments
from model.checkpoint import read_card
from model.data.dataset import find
from model.data.guess import choose
from service.inference.contract import LEAST_SIDE


def size(text: str) -> Size | Literal["dynamic", "aligned"]:
    """Parse H,W in pixels, or one of the words."""
    if text in {"dynamic", "aligned"}:
        return text  # type: ignore[return-value]
    try:
        sides = arguments.size(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{error}, nor one of the words aligned and dynamic"
        ) from None
    if min(sides) < LEAST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r}: both sides must be at least {LEAST_SIDE}")
    return sides


def options(args: argparse.Namespace) -> ExportOptions:
    """The options of a parsed command line; raises QuantizationError or DatasetError."""
    if args.precision == "int8" and args.data is None:
        raise QuantizationError("--precision int8 needs --data DIR to measure the loss of mIoU")
    if args.precision == "fp32" and args.data is not None:
        raise QuantizationError("--data measures the loss of mIoU: give --precision fp16 or int8")
    if args.precision != "int8" and args.calibration is not None:
        raise QuantizationError("--calibration is for --precision int8")
    validation = None if args.data is None else find(_kind(args), args.data, args.split)
    return ExportOptions(
        output_stride=args.output_stride,
        size=args.size if isinstance(args.size, tuple) else None,
        policy="fixed" if args.size is None or isinstance(args.size, tuple) else args.size,
        scales=args.scales,
        flip=args.flip,
        confidence=args.confidence,
        probabilities=args.probabilities,
        best_iou=() if args.best_iou is None else tuple(photos_in(args.best_iou)),
        precision=args.precision,
        quantization=Quantization(calibration(args)) if args.precision == "int8" else None,
        validation=validation,
    )


def calibration(args: argparse.Namespace) -> list[Path]:
    """The photos to calibrate on: those of a folder, or those the network was trained on."""
    if args.calibration is not None:
        return photos_in(args.calibration)
    kind, split = _kind(args), "train"
    if kind == "folder":  # whose splits have names of their own
        split = read_card(args.checkpoint).training.get("split", split)
    return [pair.image for pair in find(kind, args.data, split).pairs]


def _kind(args: argparse.Namespace) -> str:
    """The data set to measure mIoU on: named, or found in --data."""
    trained_on = read_card(args.checkpoint).training.get("dataset")
    return choose(args.dataset, args.data, trained_on)
