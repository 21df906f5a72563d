"""The contract: the description of an exported model, stored in the .onnx file's metadata.

The file is self-contained: normalisation, resizing of logits and argmax are in its graph,
and everything a caller must know is in this contract. The exporter writes it; the service
reads nothing else.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pixels.bands import MOST_CHANNELS, Samples, checked_range
from service.pydantic_errors import mistakes

VERSION: Literal[1] = 1
METADATA_KEY = "deeplab.contract"
LEAST_SIDE = 33  # of an input, in pixels: two positions at output stride 32
INPUT = "image"  # uint8 (N, H, W, C), RGB or the bands of a TIFF
LABELS: Literal["labels"] = "labels"  # uint8 (N, H, W), class ids
CONFIDENCE: Literal["confidence"] = (
    "confidence"  # uint8 (N, H, W), probability of the label times 255
)
# bool (), optional: pass false to skip computing the confidence, which then has no images; in
# older files it is zeros.
WITH_CONFIDENCE = "with_confidence"
# uint8 (N, K, h, w), probabilities of all classes times 255 at the network's own resolution.
PROBABILITIES: Literal["probabilities"] = "probabilities"
WITH_PROBABILITIES = "with_probabilities"  # the same for these
OPTIONAL = {CONFIDENCE: WITH_CONFIDENCE, PROBABILITIES: WITH_PROBABILITIES}


COMMON_SHAPES = ((3, 4), (2, 3), (9, 16))  # of photos and films, (H, W)

SizePolicy = Literal["fixed", "dynamic", "aligned"]  # see `InputSize`
Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]
Positive = Annotated[int, Field(gt=0)]


class ContractError(ValueError):
    """An .onnx file has no contract, or one that this service cannot read."""


class InputSize(BaseModel):
    """How a photo is fitted into the model's input.

    `fixed`: the graph takes exactly `height` x `width`. A larger photo is shrunk to
    fit, keeping its aspect ratio, and padded with `pad` at the right and the bottom.
    `dynamic`: the graph takes any size; photos are fitted as for `fixed`.
    `aligned`: sides may be any multiple of `multiple` plus one. A photo is shrunk as for
    `fixed`, but padded less: one side to `height` or `width`, the other one to the next such
    side from `least` on. (Photos that are small on both sides lose accuracy if none is padded
    to the whole side.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: SizePolicy
    height: Positive
    width: Positive
    multiple: Positive | None = None  # of `aligned`
    least: tuple[Positive, Positive] | None = None  # of `aligned`: (H, W)
    # The mean pixel, one value for each channel of the input; three for RGB.
    pad: Annotated[tuple[Byte, ...], Field(min_length=3, max_length=MOST_CHANNELS)]
    # For more channels: the values of 16-bit samples that become 0 and 255; None: 0 and 65535.
    sample_range: tuple[float, float] | None = None

    @field_validator("sample_range")
    @classmethod
    def _rises(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        return checked_range(value)

    @model_validator(mode="after")
    def _fits_the_policy(self) -> InputSize:
        given = [each for each in (self.multiple, self.least) if each is not None]
        if len(given) != (2 if self.policy == "aligned" else 0):
            raise ValueError("multiple and least belong to the policy aligned")
        if self.multiple is None or self.least is None:
            return self
        if any(side % self.multiple != 1 for side in (self.height, self.width, *self.least)):
            raise ValueError(f"a side is not a multiple of {self.multiple} plus one")
        if self.least[0] > self.height or self.least[1] > self.width:
            raise ValueError("least is larger than the input")
        return self

    def around(self, part: tuple[int, int]) -> tuple[int, int]:
        """Return the size (H, W) to which a photo's part of size (h, w) is padded."""
        if self.multiple is None or self.least is None:
            return self.height, self.width
        height, width = (
            max(least, -(-(side - 1) // self.multiple) * self.multiple + 1)
            for side, least in zip(part, self.least, strict=True)
        )
        if part[0] * self.width < part[1] * self.height:  # relative to the input it is wider
            return height, self.width
        return self.height, width

    @property
    def common(self) -> frozenset[tuple[int, int]]:
        """The sizes (H, W) of photos of common shapes, without that of the whole input."""
        found = set()
        for shape in COMMON_SHAPES:
            for high, wide in (shape, shape[::-1]):
                scale = min(self.height / high, self.width / wide)
                found.add(self.around((round(high * scale), round(wide * scale))))
        return frozenset(found) - {(self.height, self.width)}

    @property
    def whole(self) -> InputSize:
        """An input of exactly this height and width."""
        return self.model_copy(update={"policy": "fixed", "multiple": None, "least": None})

    @property
    def channels(self) -> int:
        """The number of channels: 3 for photos."""
        return len(self.pad)

    @property
    def samples(self) -> Samples:
        """The channels and range that a decoded photo must have."""
        return Samples(self.channels, self.sample_range)


class Parity(BaseModel):
    """The comparison of the exported file with PyTorch (float32) at export.

    For a network of another library, the comparison is with the original file.

    Errors are those of the logits, or of the mean probabilities if the graph averages
    several scales or flips.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: Positive
    pixels: Positive
    agreement: Annotated[float, Field(ge=0, le=1)]  # share of equal labels
    max_logit_error: Annotated[float, Field(ge=0)]
    logit_std: Annotated[float, Field(ge=0)]
    # For reduced precision: mIoU of this file minus that of PyTorch, and where.
    miou_change: float | None = None
    miou_images: int | None = None


class Calibration(BaseModel):
    """The results of `python -m export.calibrate` on photos with true masks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    split: str
    images: Positive
    # By class: the confidence that gives the best F1 of the class's pixels.
    best_f1: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    # Entry t, 0 to 255: the mean share of a photo's pixels whose true class has a probability
    # (times 255) below t. Never falls.
    missed: Annotated[tuple[float, ...], Field(min_length=256, max_length=256)] | None = None


class BestIou(BaseModel):
    """Labels are not the most probable classes, but those that maximise the expected IoU.

    A pixel takes the class with the largest `weight * probability - margin`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    photos: Positive  # that weights and margins were measured on
    weights: tuple[Annotated[float, Field(gt=0, le=1)], ...]  # by class
    margins: tuple[Annotated[float, Field(ge=0, le=1)], ...]


class Contract(BaseModel):
    """The metadata of an exported model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = VERSION
    task: Literal["semantic-segmentation"] = "semantic-segmentation"
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=256)]
    palette: tuple[Color, ...]
    input: InputSize
    backbone: str
    output_stride: Literal[8, 16, 32] | None  # None: a network of another library
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    confidence: bool = False
    # Where the probabilities lie, if the file has them. corners: the first and last pixels of the
    # input have one; centres: each is in the middle of a block of pixels.
    probability_grid: Literal["corners", "centres"] | None = None
    calibration: Calibration | None = None
    best_iou: BestIou | None = None  # None: labels are the most probable classes
    checkpoint_sha256: str
    graph_sha256: str | None = None  # of the file without its metadata; None in older files
    contract_sha256: str | None = None  # of this contract without this field; likewise
    metrics: dict[str, Any] = {}
    parity: Parity

    @property
    def of_one_size(self) -> Contract:
        """The contract if every photo is padded to the whole input."""
        return self.model_copy(update={"input": self.input.whole})

    @property
    def background(self) -> int | None:
        """The id of the class `background`, which overlays leave clear; None without one."""
        return self.classes.index("background") if "background" in self.classes else None

    @model_validator(mode="after")
    def _one_value_per_class(self) -> Contract:
        found = {} if self.calibration is None else {"thresholds": self.calibration.best_f1}
        if self.best_iou is not None:
            found |= {"weights": self.best_iou.weights, "margins": self.best_iou.margins}
        for what, values in found.items():
            if len(values) != len(self.classes):
                raise ValueError(f"{len(self.classes)} classes but {len(values)} {what}")
        return self

    @model_validator(mode="after")
    def _one_colour_per_class(self) -> Contract:
        if len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes but {len(self.palette)} colours")
        return self


def choices(contract: Contract) -> list[tuple[str, ...]]:
    """Return the combinations of outputs that can be requested: each with those before it."""
    found: list[tuple[str, ...]] = [(LABELS,)]
    if contract.confidence:
        found.append((*found[-1], CONFIDENCE))
    if contract.probability_grid:
        found.append((*found[-1], PROBABILITIES))
    return found


def parse(metadata: dict[str, str]) -> Contract:
    """Parse the contract in an .onnx file's metadata; raises ContractError."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise ContractError(
            f"no {METADATA_KEY!r} in the metadata: not a file made by `python -m export`"
        )
    try:
        fields = json.loads(text)
        version = fields.get("version") if isinstance(fields, dict) else None
        if version != VERSION:
            raise ContractError(
                f"contract version {version!r}, this service reads {VERSION}: export again"
            )
        return Contract.model_validate_json(text)
    except json.JSONDecodeError as error:
        raise ContractError(f"the contract is not JSON: {error}") from None
    except ValidationError as error:
        found = mistakes(error.errors(), whole="contract")
        raise ContractError(f"the contract is not valid: {found}") from None
