"""Results of photos from a network in PyTorch, the same as the service's with the exported file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as Pillow

from model.network import inference
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import (
    Labels,
    Source,
    average_probabilities,
    prepare,
    probabilities,
    shrunk,
)
from model.network.layers import resize
from postprocess import windows
from postprocess.errors import InvalidOption
from postprocess.grid import Grid, Placing, Probabilities
from postprocess.results import outputs, png
from postprocess.results import photo as photos
from postprocess.results.facts import Calibration, Color, Extras
from postprocess.results.options import expect_within
from postprocess.results.outputs import Result, Wish
from postprocess.results.photo import Photo
from postprocess.runs import Spread

BACKGROUND = "background"

Image = NDArray[np.uint8]  # (H, W, C): RGB, or bands of which the first three are shown
Fit = Literal["resize", "sliding"]


@dataclass(frozen=True)
class NetFacts:
    """The facts about a network that its results depend on: postprocess.results.facts.Facts."""

    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    probability_grid: Placing
    calibration: Calibration | None
    confidence: bool = True
    best_iou: None = None  # a choice of the exported file

    @classmethod
    def of(cls, net: DeepLabV3Plus) -> NetFacts:
        """Describe a network. Class names that are unknown are empty, their colours black."""
        count = net.config.num_classes
        return cls(
            net.classes or ("",) * count,
            net.palette or ((0, 0, 0),) * count,
            "corners" if net.config.align_corners else "centres",
            net.calibration,
        )

    @property
    def background(self) -> int | None:
        """The id of the class `background`, if there is one."""
        return self.classes.index(BACKGROUND) if BACKGROUND in self.classes else None


@dataclass(frozen=True)
class Passes:
    """How to run a photo: scales, mirroring, and what to do with large photos."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fit: Fit = "resize"  # of photos larger than the crop size
    overlap: float | None = None  # of windows; with fit=resize their probabilities are averaged
    whole: bool = False  # take larger photos as they are

    def __post_init__(self) -> None:
        if self.fit not in {"resize", "sliding"}:
            raise InvalidOption(f"fit={self.fit!r}: choose from resize, sliding")
        if self.fit == "sliding" and self.whole:
            raise InvalidOption(f"whole={self.whole}: with fit=sliding, leave it out")
        if self.fit == "sliding" and self.overlap is not None:
            expect_within("overlap", self.overlap)

    @property
    def at_full_size(self) -> bool:
        """Whether large photos run as they are, whole or in windows that are averaged."""
        return self.whole or (self.overlap is not None and self.fit == "resize")


@dataclass(frozen=True)
class Target:
    """The crop size, and the colour around smaller photos."""

    height: int
    width: int
    pad: tuple[int, ...]


@dataclass(frozen=True)
class SourcePhoto(Photo):
    """A photo whose picture is decoded when it is needed, as in the service."""

    source: Source | None = None

    @cached_property
    def whole(self) -> Pillow.Image:
        """The picture of `size`; raises what `source` raises."""
        if self.picture is None and self.source is not None:
            pixels, _ = self.source.reduced(max(self.size))
            picture = photos.as_image(pixels[..., :3])
        else:
            picture = photos.as_image(self.picture)
        return photos.shrunk(picture, self.size)


@dataclass(frozen=True)
class Seen:
    """The outputs of a network for a photo or a window."""

    labels: Labels  # (H, W)
    confidence: Labels | None = None  # (H, W)
    points: Probabilities | None = None  # (K, h, w)


def label_map(net: DeepLabV3Plus, source: Source, wish: Wish, passes: Passes) -> Labels:
    """Return the labels of a photo as requested, (H, W). Errors as for `files`."""
    return outputs.label_map(_result_for(net, source, wish, passes), wish)


def files(
    net: DeepLabV3Plus, source: Source, wish: Wish, passes: Passes, orientation: int = 1
) -> dict[str, bytes]:
    """Return the outputs of a photo by file name; `orientation`: the EXIF value it was turned by.

    Raises InvalidOption, TooLarge, and what `source` and `model.network.inference.label_map` raise.
    """
    found = _result_for(net, source, wish, passes, orientation)
    return {wish.kind(name)[1]: body for name, body in outputs.encode_each(found, wish).items()}


def _result_for(
    net: DeepLabV3Plus, source: Source, wish: Wish, passes: Passes, orientation: int = 1
) -> Result:
    if wish.smooth and passes.at_full_size:
        raise InvalidOption(
            "smooth=true needs probabilities on one grid, as fit=resize and fit=sliding give: "
            "do not take the photo whole, or average windows"
        )
    return result(net, source, outputs.extras(wish, NetFacts.of(net)), passes, orientation)


def result(
    net: DeepLabV3Plus, source: Source, extras: Extras, passes: Passes, orientation: int = 1
) -> Result:
    """Run a network on a photo; `extras`: what is needed besides labels. Errors as for `files`.

    `orientation`: the EXIF value that the photo was turned by.
    """
    facts, target = NetFacts.of(net), _target(net)
    if passes.at_full_size or passes.fit == "sliding":
        image, size = source.pixels, source.pixels.shape[1::-1]
    else:
        image, size = source.reduced(max(target.height, target.width))
    shown = image[..., :3]
    picture = shown if image.shape[1::-1] == size else None
    photo = SourcePhoto(size, orientation, picture, shown, source)
    if passes.at_full_size:  # as the reference does
        seen = _seen(net, image, extras, passes)
        return Result(photo, seen.labels, seen.confidence, Spread.none(seen.labels.shape), facts)
    if passes.fit == "sliding" and windows.needed(size, target):
        return _joined(net, image, extras, passes, photo)
    fitted = shrunk(image, net.config.crop_size, size[::-1])
    seen = _seen(net, fitted, extras, replace(passes, overlap=None))
    grid = None
    if seen.points is not None:
        sides = target.height, target.width
        grid = Grid.of(seen.points, facts.probability_grid, sides, fitted.shape[:2], size)
    spread = Spread(png.shares(fitted.shape[0], size[1]), png.shares(fitted.shape[1], size[0]))
    photo = replace(photo, decoded=fitted[..., :3])
    return Result(photo, seen.labels, seen.confidence, spread, facts, grid)


def _target(net: DeepLabV3Plus) -> Target:
    pad = tuple(math.floor(value + 0.5) for value in net.config.mean)  # as in exports
    return Target(*net.config.crop_size, pad)


def _joined(
    net: DeepLabV3Plus, image: Image, extras: Extras, passes: Passes, photo: Photo
) -> Result:
    """Run a network on the windows of a photo, and join what it gives."""
    size, target = photo.size, _target(net)
    overlap = windows.OVERLAP if passes.overlap is None else passes.overlap
    pieces = windows.cut(windows.padded(image, target), size, target, overlap)
    alone = replace(passes, overlap=None)
    seen = [_seen(net, piece.pixels, extras, alone) for piece in pieces]
    labels = windows.merge([each.labels for each in seen], pieces, size)
    sure = [each.confidence for each in seen if each.confidence is not None]
    points = [each.points for each in seen if each.points is not None]
    facts = NetFacts.of(net)
    return Result(
        photo,
        labels,
        windows.merge(sure, pieces, size) if sure else None,
        Spread.none(labels.shape),
        facts,
        windows.merge_grids(points, pieces, facts.probability_grid, target, size)
        if points
        else None,
    )


def _seen(net: DeepLabV3Plus, image: Image, extras: Extras, passes: Passes) -> Seen:
    """Run a network on a photo (H, W, C) as it is."""
    scales, flip, overlap = passes.scales, passes.flip, passes.overlap
    if extras == "labels":
        return Seen(inference.label_map(net, image, scales, flip, overlap=overlap))
    points = None
    if extras == "probabilities" and not passes.at_full_size:
        scores, points = _scores_and_points(net, image, scales, flip)
    else:
        scores = probabilities(net, image, scales, flip, overlap=overlap)
    labels = scores.argmax(axis=0).astype(np.uint8)
    confidence = (scores.max(axis=0) * 255 + 0.5).astype(np.uint8)  # as in exported files
    return Seen(labels, confidence, points)


def _scores_and_points(
    net: DeepLabV3Plus, image: Image, scales: Sequence[float], flip: bool
) -> tuple[NDArray[np.float32], Probabilities]:
    """Return the probabilities of a photo at two resolutions, with one run of the network.

    At the photo's own (K, H, W) as `probabilities` gives them, and times 255 at the network's
    (K, h, w).
    """
    padded, (height, width) = prepare(net, image, scales, net.config.crop_size, None)
    size, align = (padded.shape[2], padded.shape[3]), net.config.align_corners
    with torch.inference_mode():
        if tuple(scales) == (1.0,) and not flip:
            logits = net(padded)
            scores = F.softmax(resize(logits, size, align_corners=align), dim=1)
            points = F.softmax(logits, dim=1)
        else:
            scores = average_probabilities(net, padded, scales, flip=flip)
            coarse = (-(-size[0] // net.stride), -(-size[1] // net.stride))
            points = resize(scores, coarse, align_corners=align)
        eight_bits = (points[0].float() * 255 + 0.5).to(torch.uint8)
    return scores[0, :, :height, :width].float().cpu().numpy(), eight_bits.cpu().numpy()
