"""Static int8 quantization.

Weights and activations of the network become 8 bits (QDQ form, which ONNX
Runtime fuses into integer kernels); resizing, averaging and argmax stay float.
Ranges come from calibration photos. Each convolution is first quantized alone,
and those that change too many labels on their own stay float.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.saturation import safe_ranges
from export.tail import learned, tail
from service.images.imaging import open_checked
from service.images.prepare import fitted
from service.inference.contract import INPUT, LABELS, InputSize

log = logging.getLogger("export")

REPORT_EVERY = 10  # convolutions; each takes a second or so

ACTIVATIONS = ["Relu", "Clip"]
OPERATORS = ["Conv", "Add", "Concat", *ACTIVATIONS]
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
SENSITIVITY_IMAGES = 4
# A convolution that alone changes more labels than this stays in float. Most change under 0.1 %.
MAX_LABELS_CHANGED = 0.005


class QuantizationError(ValueError):
    """An option or file that quantization needs is missing."""


@dataclass(frozen=True)
class Quantization:
    """How to calibrate int8."""

    calibration: Sequence[Path]  # photos, none of the validation set
    calibration_images: int = 64


def quantized(proto: onnx.ModelProto, target: InputSize, options: Quantization) -> onnx.ModelProto:
    """Quantize a float32 graph to 8 bits, except for its sensitive convolutions."""
    images = photos(options.calibration, options.calibration_images, target)
    log.info("calibrating on %d photos", len(images))
    prepared = _prepared(proto)
    ranges = calibrate(prepared, images)
    floats = sensitive(prepared, ranges, images[:SENSITIVITY_IMAGES])
    log.info("%d convolutions stay in float: %s", len(floats), ", ".join(floats) or "none")
    return _quantize(prepared, ranges, exclude=floats)


def photos_in(folder: Path) -> list[Path]:
    """The photos of a folder; raises QuantizationError if it holds none."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not paths:
        raise QuantizationError(f"{folder} holds no photo to measure on")
    return paths


def photos(paths: Sequence[Path], count: int, target: InputSize) -> list[NDArray[np.uint8]]:
    """`count` photos spread evenly over `paths`, fitted into the input: [(H, W, C) uint8]."""
    chosen = [paths[int(i)] for i in np.linspace(0, len(paths) - 1, min(count, len(paths)))]
    files = (open_checked(path.read_bytes(), 10**8, target.samples) for path in chosen)
    return [fitted(file, target).pixels for file in files]


def _prepared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with inferred shapes, which the quantizer needs."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "prepared.onnx")
        onnx.save(proto, source)
        quant_pre_process(source, target, skip_symbolic_shape=True)
        return onnx.load(target)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self._feeds: Iterator[dict[str, Any]] = ({INPUT: image[None]} for image in images)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def calibrate(proto: onnx.ModelProto, images: Sequence[NDArray[np.uint8]]) -> TensorsData:
    """The range of every activation over the calibration photos."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "float.onnx")
        onnx.save(proto, path)
        calibrator = create_calibrator(
            path, OPERATORS, augmented_model_path=str(Path(folder, "augmented.onnx"))
        )
        calibrator.collect_data(_Reader(images))
        return calibrator.compute_data()


def sensitive(
    proto: onnx.ModelProto, ranges: TensorsData, images: Sequence[NDArray[np.uint8]]
) -> list[str]:
    """Convolutions that, quantized alone, change too many labels."""
    truth = _labels(proto, images)
    found = []
    nodes = list(filter(learned, proto.graph.node))
    for number, node in enumerate(nodes):
        if number % REPORT_EVERY == 0:
            log.info("quantizing each convolution alone: %d of %d done", number, len(nodes))
        alone = [node.name, *_activations(proto, node)]
        labels = _labels(_quantize(proto, ranges, only=alone), images)
        changed = float((labels != truth).mean())
        log.debug("%s alone changes %.3f%% of labels", node.name, 100 * changed)
        if changed > MAX_LABELS_CHANGED:
            found.append(node.name)
    return found


def _activations(proto: onnx.ModelProto, conv: onnx.NodeProto) -> list[str]:
    """The activation that clips a convolution's output; its range is that of clipped values."""
    return [
        node.name
        for node in proto.graph.node
        if node.op_type in ACTIVATIONS and node.input[0] == conv.output[0]
    ]


def _quantize(
    proto: onnx.ModelProto,
    ranges: TensorsData,
    *,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)  # the quantizer works in place
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=list(only),
        nodes_to_exclude=[*exclude, *tail(proto)],
        op_types_to_quantize=["Conv", *ACTIVATIONS] if only else OPERATORS,
        extra_options={"TensorQuantOverrides": safe_ranges(proto)},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer.quantize_model()
    quantizer.model.topological_sort()  # as the standard demands, and the quantizer does not
    return quantizer.model.model  # type: ignore[no-any-return]


def _session(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _labels(proto: onnx.ModelProto, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    session = _session(proto)
    return np.stack([session.run([LABELS], {INPUT: image[None]})[0][0] for image in images])
