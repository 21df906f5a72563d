"""Measure the mean IoU of an exported file: `python -m export.evaluate FILE.onnx --data DIR`.

It computes the figures of model.evaluate with the service's own engine and image
code, so it measures what a client gets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import arguments, memory
from model.data.dataset import DatasetError
from model.data.survey import expect_classes, survey
from model.evaluate.evaluation import evaluate
from model.evaluate.options import (
    add_evaluation_arguments,
    evaluation_arguments,
    open_part,
    report,
)
from model.network.inference import Photo, Source
from postprocess import windows
from service.errors import StartupError
from service.images.imaging import DecodedPhoto, fit, restore
from service.inference import cpus
from service.inference.contract import InputSize
from service.inference.engine import Engine, EngineOptions


def predict(
    run: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    target: InputSize,
    photo: Photo | Source,
    overlap: float | None = None,
) -> NDArray[np.uint8]:
    """A photo -> (H, W) uint8 class ids, as the service computes them.

    `run` is an engine's method: a batch (N, H, W, C) uint8 to labels (N, H, W). Photos
    larger than `target` are shrunk, or cut into windows that overlap by a share.
    """
    found = decoded(photo, target, whole=overlap is not None)
    if overlap is not None and windows.needed(found.size, target):
        pieces = windows.cut(windows.padded(found.pixels, target), found.size, target, overlap)
        maps = [run(piece.pixels[None])[0] for piece in pieces]
        return windows.merge(maps, pieces, found.size)
    fitted = fit(found, target)
    return restore(run(fitted.pixels[None])[0], fitted, found.size).image


def decoded(photo: Photo | Source, target: InputSize, *, whole: bool = False) -> DecodedPhoto:
    """Decode a photo as far as a model needs it; pixels (H, W, C) uint8 as they are."""
    if isinstance(photo, np.ndarray):
        return DecodedPhoto.of(photo)
    if whole:
        return DecodedPhoto.of(photo.pixels)
    pixels, size = photo.reduced(max(target.height, target.width))
    return replace(DecodedPhoto.of(pixels), size=size)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m export.evaluate models/light.onnx --data DATA --split val",
    )
    p.add_argument("file", type=Path, help="exported .onnx file")
    add_evaluation_arguments(p)
    arguments.add_windows(p, whole=False)
    p.add_argument(
        "--device",
        default="cpu",
        choices=("auto", "cpu", "openvino", "cuda"),
        help="engine that runs the file, as for the service (default: cpu)",
    )
    return p


def main(argv: list[str] | None = None) -> int:
    args, overlap = evaluation_arguments(parser(), argv)
    try:
        engine = Engine(args.file, EngineOptions(args.device, threads=cpus.available()))
        size = engine.contract.input
        dataset, part = open_part(args, engine.contract.classes, size.samples)
        expect_classes(survey(dataset))
        contract = engine.contract
        judge = partial(predict, engine.run, contract.input, overlap=overlap)
        with memory.advising("export with a smaller --size, or fewer or smaller --scales"):
            result = evaluate(dataset, judge, args)
        result |= part | {
            "output_stride": contract.output_stride,
            "scales": list(contract.scales),
            "flip": contract.flip,
            "sliding_overlap": overlap,
            "execution_provider": engine.provider,
            "execution_precision": engine.execution_precision,
        }
        report(result, args)
    except (StartupError, DatasetError, memory.ShortageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
