"""Random scale, crop and flip (section 4 of the paper), one resize per sample.

All random numbers come from a generator made from the seed and the sample's position
in the run, never from global state. A position gives the same crop in any worker
and after any number of interruptions.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.data.dataset import UNLABELLED, VOID
from model.data.photo import Picture

LabeledCrop = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # pixels (S, S, C) and ids (S, S)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
Rectangle = tuple[slice, slice]  # rows and columns


class AugmentConfig(BaseModel):
    """How a photo and its mask become a training crop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop: Annotated[int, Field(ge=33)] = 513
    min_scale: Annotated[float, Field(gt=0)] = 0.5
    max_scale: Annotated[float, Field(gt=0)] = 2.0
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    # Brightness, contrast and saturation each vary by up to this share; the paper has none.
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # How often a photo is perturbed instead, before it is cropped (model.data.perturb).
    strong: Annotated[float, Field(ge=0, le=1)] = 0.0
    # How often a rectangle of another sample's crop is pasted over this one's.
    cutmix: Annotated[float, Field(ge=0, le=1)] = 0.0
    # How often the crop is the weighted mean of its own pixels and another's. It has no label then.
    mixup: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if self.min_scale > self.max_scale:
            raise ValueError(
                f"min_scale {self.min_scale} is above max_scale {self.max_scale}: swap them"
            )
        if self.cutmix + self.mixup > 1:
            raise ValueError(
                f"cutmix {self.cutmix} and mixup {self.mixup} are shares of the same crops: "
                "together at most 1"
            )
        return self


class Crop(NamedTuple):
    """The place of a crop in the scaled picture, in pixels of the scaled picture."""

    scale: float
    left: int
    top: int
    flip: bool


def draw(rng: np.random.Generator, size: tuple[int, int], config: AugmentConfig) -> Crop:
    """Choose a crop of a picture of `size` (W, H)."""
    scale = rng.uniform(config.min_scale, config.max_scale)
    width, height = (max(1, round(side * scale)) for side in size)
    left = int(rng.integers(0, max(0, width - config.crop) + 1))
    top = int(rng.integers(0, max(0, height - config.crop) + 1))
    return Crop(scale, left, top, bool(rng.random() < config.flip))


def apply(
    image: Picture, mask: NDArray[np.uint8], crop: Crop, side: int, pad: NDArray[np.uint8]
) -> LabeledCrop:
    """Cut a crop: image (H, W) of C channels, ids (H, W) -> (side, side, C) and (side, side) uint8.

    Only the pixels of the crop are resized (bilinear for the photo, nearest for the
    mask). Pixels beyond the picture, at the bottom and the right as in the reference,
    become `pad` (the mean pixel) and void.
    """
    width, height = (max(1, round(length * crop.scale)) for length in image.size)
    out_w, out_h = min(side, width - crop.left), min(side, height - crop.top)
    sx, sy = image.width / width, image.height / height
    box = (crop.left * sx, crop.top * sy, (crop.left + out_w) * sx, (crop.top + out_h) * sy)
    pixels = np.empty((side, side, len(pad)), np.uint8)
    pixels[:] = pad
    resized = image.resize((out_w, out_h), Image.Resampling.BILINEAR, box=box)
    pixels[:out_h, :out_w] = np.asarray(resized)
    rows = ((np.arange(crop.top, crop.top + out_h) + 0.5) * sy).astype(np.int64)
    columns = ((np.arange(crop.left, crop.left + out_w) + 0.5) * sx).astype(np.int64)
    labels = np.full((side, side), VOID, np.uint8)
    labels[:out_h, :out_w] = mask[np.ix_(rows, columns)]
    if crop.flip:
        pixels, labels = pixels[:, ::-1].copy(), labels[:, ::-1].copy()
    return pixels, labels


def jitter(pixels: NDArray[np.uint8], rng: np.random.Generator, amount: float) -> NDArray[np.uint8]:
    """Vary brightness, contrast and saturation of (H, W, C) each by a share up to `amount`.

    For more than three channels saturation is the distance from their mean.
    """
    brightness, contrast, saturation = rng.uniform(1 - amount, 1 + amount, 3).astype(np.float32)
    x = pixels.astype(np.float32)
    gray = x @ LUMA if x.shape[2] == len(LUMA) else x.mean(axis=2)
    x = gray[..., None] + (x - gray[..., None]) * saturation
    x = ((x - gray.mean()) * contrast + gray.mean()) * brightness
    return x.clip(0, 255).astype(np.uint8)  # type: ignore[no-any-return]


def rectangle(labels: NDArray[np.uint8], rng: np.random.Generator) -> Rectangle | None:
    """Choose the part of a crop with labels (S, S) that CutMix replaces; None if all is void.

    The rectangle lies within the photo's part of the crop, with sides of 30 to 80 % of it.
    """
    rows, columns = np.nonzero(labels != VOID)
    if not len(rows):
        return None
    height, width = int(rows.max()) + 1, int(columns.max()) + 1
    h, w = int(height * rng.uniform(0.3, 0.8)), int(width * rng.uniform(0.3, 0.8))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return slice(top, top + h), slice(left, left + w)


def paste(crop: LabeledCrop, other: LabeledCrop, place: Rectangle) -> LabeledCrop:
    """Copy the crop and replace its pixels and ids inside the rectangle by the other's.

    CutMix (Yun et al. 2019) for masks (French et al. 2020): the network must recognise an object by
    itself, not only by the scene around it.
    """
    pixels, labels = crop[0].copy(), crop[1].copy()
    pixels[place], labels[place] = other[0][place], other[1][place]
    return pixels, labels


def blend(crop: LabeledCrop, other: LabeledCrop, share: float) -> LabeledCrop:
    """The mean of two crops' pixels, of which `share` is the first one's, without labels.

    Mixup (Zhang et al. 2018). A pixel that shows two things has no class of its own, so only
    teachers that see the same crop can say what it is (Beyer et al. 2022, section 3.1). It is
    void where one of the crops is.
    """
    mean = share * crop[0].astype(np.float32) + (1 - share) * other[0]
    void = (crop[1] == VOID) | (other[1] == VOID)
    return mean.round().astype(np.uint8), np.where(void, VOID, UNLABELLED).astype(np.uint8)
