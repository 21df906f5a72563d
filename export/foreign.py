"""Read a segmentation network of another library, and run it as that library does.

A file says which tensors it has, but not what they mean. `Preparation` holds what only the library
knows, and `Foreign` holds what the file and a run on photos show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto

from service.inference.contract import METADATA_KEY

Size = tuple[int, int]
Triple = tuple[float, float, float]
Layout = Literal["nchw", "nhwc"]
Kind = Literal["logits", "probabilities", "labels"]

OLDEST_OPSET = 11  # the first whose Resize can centre pixels
DEFAULT_SIZE = (512, 512)  # for networks that take any size
USUAL_OUTPUTS = ("logits", "out", "labels")  # Hugging Face, torchvision, our own
INPUT_TYPES: dict[int, type] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.UINT8: np.uint8,
}


class AdoptError(ValueError):
    """A network cannot be adopted as it is described; the message says what to change."""


@dataclass(frozen=True)
class Preparation:
    """How a library turns a photo into the network's input."""

    mean: Triple | None  # None: the network takes the photo's bytes
    std: Triple | None
    highest: float  # the value of white before mean and std: 1 or 255
    channels: Literal["rgb", "bgr"] = "rgb"

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return a and b of `a * byte + b` for red, green and blue in the network's order."""
        if self.mean is None or self.std is None:
            return None
        mean, std = (np.array(each, np.float64) for each in (self.mean, self.std))
        scale = self.highest / 255 / std
        return scale.astype(np.float32), (-mean / std).astype(np.float32)

    def pad(self) -> tuple[int, int, int]:
        """Return the mean colour as RGB bytes; black without one."""
        if self.mean is None:
            return (0, 0, 0)
        mean = self.mean if self.channels == "rgb" else self.mean[::-1]
        red, green, blue = (min(255, max(0, round(value * 255 / self.highest))) for value in mean)
        return red, green, blue

    def applied(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """(H, W, 3) uint8, RGB -> the same shape as the library would give it."""
        ordered = image if self.channels == "rgb" else image[..., ::-1]
        if self.mean is None or self.std is None:
            return ordered
        values = ordered.astype(np.float64) / 255 * self.highest
        prepared: NDArray[np.float64] = (values - np.array(self.mean)) / np.array(self.std)
        return prepared


@dataclass(frozen=True)
class Foreign:
    """A network, and what its tensors mean."""

    model: onnx.ModelProto
    digest: str  # SHA-256 of the file
    input: str
    input_type: int  # of TensorProto
    layout: Layout
    size: Size  # (H, W) of the photos that it will get
    preparation: Preparation
    output: str
    output_type: int  # of TensorProto
    output_shape: tuple[int, ...]  # for one photo of `size`
    kind: Kind
    classes: int
    class_axis: int  # of scores
    align_corners: bool  # where scores are enlarged

    @property
    def output_size(self) -> Size:
        """The height and width of the output."""
        sides = list(self.output_shape[1:])
        if self.kind != "labels":
            del sides[self.class_axis - 1]
        elif len(sides) == 3:
            sides.remove(1)
        return sides[0], sides[1]

    @property
    def is_binary(self) -> bool:
        """Whether one channel of scores tells the second class from the first."""
        return self.kind != "labels" and self.output_shape[self.class_axis] == 1


class Original:
    """The file in ONNX Runtime on the CPU, one photo at a time."""

    def __init__(self, path: Path, image: onnx.ValueInfoProto) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise AdoptError(f"ONNX Runtime cannot load the network: {line(error)}") from None
        self.input, self.type = image.name, INPUT_TYPES[image.type.tensor_type.elem_type]

    def outputs(
        self, image: NDArray[np.uint8], preparation: Preparation, layout: Layout
    ) -> dict[str, NDArray[Any]]:
        """(H, W, 3) uint8 -> every output of the network, by name."""
        prepared = preparation.applied(image)
        ordered = prepared.transpose(2, 0, 1) if layout == "nchw" else prepared
        fed: dict[str, NDArray[Any]] = {
            self.input: np.ascontiguousarray(ordered[None]).astype(self.type)
        }
        try:
            found = self.session.run(None, fed)
        except Exception as error:
            raise AdoptError(
                f"the network does not run on a photo of {image.shape[0]} x {image.shape[1]} "
                f"(H x W): {line(error)}; another --size may suit it"
            ) from None
        return {
            each.name: value for each, value in zip(self.session.get_outputs(), found, strict=True)
        }


def read(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read a file, its weights in other files too, and its digest; raises AdoptError."""
    try:
        data = path.read_bytes()
        model = onnx.load(path)
    except OSError as error:
        raise AdoptError(f"{error.filename or path}: {error.strerror or error}") from None
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise AdoptError(f"{path} is damaged, or no ONNX file: {line(error)}") from None
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise AdoptError(f"{path} has opset {opset}: export it with opset {OLDEST_OPSET} or later")
    if METADATA_KEY in {each.key for each in model.metadata_props}:
        raise AdoptError(f"{path} has a contract already: the service takes it as it is")
    return model, hashlib.sha256(data).hexdigest()


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators."""
    return max(
        (each.version for each in model.opset_import if each.domain in {"", "ai.onnx"}), default=0
    )


def find_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the photo's input; raises AdoptError if there are others, or it takes no photo."""
    constants = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs)
        raise AdoptError(f"the network takes {names or 'nothing'}: it must take one photo alone")
    image: onnx.ValueInfoProto = inputs[0]
    kind = image.type.tensor_type
    if kind.elem_type not in INPUT_TYPES or len(kind.shape.dim) != 4:
        name = TensorProto.DataType.Name(kind.elem_type)
        raise AdoptError(
            f"input {image.name} has type {name} and {len(kind.shape.dim)} dimensions: "
            "photos are FLOAT, FLOAT16 or UINT8 with four"
        )
    return image


def find_layout(image: onnx.ValueInfoProto, told: Layout | None) -> Layout:
    """Return the order of the input's dimensions, by which of them is 3."""
    dims = _dims(image)
    fitting: list[Layout] = []
    if dims[1] in {3, None}:
        fitting.append("nchw")
    if dims[3] in {3, None}:
        fitting.append("nhwc")
    if told is not None:
        if told not in fitting:
            raise AdoptError(f"--layout {told}: input {image.name} has the shape {_shape(dims)}")
        return told
    sure = [each for each in fitting if dims[1 if each == "nchw" else 3] == 3]
    if len(sure) == 1:
        return sure[0]
    raise AdoptError(
        f"input {image.name} has the shape {_shape(dims)}: say which dimension is the colour "
        "with --layout nchw or nhwc"
    )


def find_size(image: onnx.ValueInfoProto, layout: Layout, told: Size | None) -> Size:
    """Return the size (H, W) of the input, by the file, by `told`, or the default."""
    dims = _dims(image)
    fixed = dims[2:4] if layout == "nchw" else dims[1:3]
    if dims[0] not in {1, None}:
        raise AdoptError(
            f"the network takes {dims[0]} photos at a time: export it for 1, or for any"
        )
    height, width = (
        side or wanted for side, wanted in zip(fixed, told or DEFAULT_SIZE, strict=True)
    )
    if told is not None and told != (height, width):
        raise AdoptError(f"--size {told[0]},{told[1]}: the network takes {height},{width} alone")
    return height, width


def choose_output(found: dict[str, NDArray[Any]], told: str | None) -> str:
    """Return the name of the output with the labels or scores."""
    if told is not None and told in found:
        return told
    listed = ", ".join(f"{name} {list(value.shape)}" for name, value in found.items())
    if told is not None:
        raise AdoptError(f"--output-name {told}: the network gives {listed}")
    if len(found) == 1:
        return next(iter(found))
    usual = [name for name in USUAL_OUTPUTS if name in found]
    if len(usual) == 1:
        return usual[0]
    raise AdoptError(f"the network gives {listed}: choose one with --output-name")


def find_class_axis(shape: Sequence[int], classes: int, layout: Layout) -> int:
    """Return the axis of the classes in scores of this shape; raises AdoptError."""
    channels = {classes, 1} if classes == 2 else {classes}
    fitting = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] in channels]
    usual = 1 if layout == "nchw" else 3
    if usual in fitting:
        return usual
    if fitting:
        return fitting[0]
    raise AdoptError(
        f"the output has the shape {list(shape)}, and --classes names {classes}: "
        "scores have one channel for each class"
    )


def kind_of_scores(values: Sequence[NDArray[Any]], axis: int) -> Kind:
    """Return whether scores are probabilities: in [0, 1], with the sum 1 over several classes."""
    for each in values:
        sums_to_one = each.shape[axis] == 1 or np.allclose(each.sum(axis), 1, atol=1e-2)
        if not (sums_to_one and each.min() >= 0 and each.max() <= 1 + 1e-3):
            return "logits"
    return "probabilities"


def is_label_map(shape: Sequence[int]) -> bool:
    """Whether an output of whole numbers has a shape of label maps: one number per pixel."""
    return len(shape) == 3 or (len(shape) == 4 and 1 in {shape[1], shape[3]})


def truth(foreign: Foreign, raw: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The network's output for one photo -> labels (H, W) and scores (K, H, W), by PyTorch.

    Labels at a smaller size have no scores: (0, H, W).
    """
    size = foreign.size
    if foreign.kind == "labels":
        small = torch.from_numpy(raw.astype(np.float64)).reshape(1, 1, *foreign.output_size)
        labels = F.interpolate(small, size, mode="nearest-exact")[0, 0]
        return labels.long().numpy(), np.zeros((0, *size), np.float32)
    scores = torch.from_numpy(raw.astype(np.float32)).movedim(foreign.class_axis, 1)
    if foreign.is_binary and foreign.kind == "logits":
        scores = torch.cat([-scores / 2, scores / 2], 1)
    elif foreign.is_binary:
        scores = torch.cat([1 - scores, scores], 1)
    if scores.shape[2:] != size:
        scores = F.interpolate(scores, size, mode="bilinear", align_corners=foreign.align_corners)
    return scores[0].argmax(0).numpy(), scores[0].numpy()


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims
    ]


def _shape(dims: Sequence[int | None]) -> str:
    return " x ".join("?" if dim is None else str(dim) for dim in dims)


def line(error: Exception) -> str:
    """Write an error of a library as one line."""
    return " ".join(str(error).split())[:300]
