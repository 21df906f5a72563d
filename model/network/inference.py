"""Label maps and probabilities of photos, the way the reference evaluates.

A photo smaller than the crop size is padded at the bottom and right with the
mean pixel. A larger one runs whole, or in overlapping windows of the crop size
whose probabilities are averaged, or shrunk as the service does (`served_map`). With
several scales or flipping, the class probabilities of all passes are averaged at full
size. Each pass resizes the photo to int((n - 1) * scale + 1) with aligned corners. It
resizes its logits in two steps: to the size they would have at scale 1 or more, then to
the crop. For scales below 1 a single step would change labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.network.deeplab import DeepLabV3Plus
from model.network.layers import resize, scaled
from pixels.bands import PHOTO, resized

Size = tuple[int, int]
Photo = NDArray[np.uint8]
Labels = NDArray[np.uint8]


class Source(Protocol):
    """A photo to segment. model/data/photo.py has one for files, and one for pixels in memory."""

    @property
    def pixels(self) -> Photo:
        """The photo as it is, (H, W, C)."""

    def reduced(self, side: int) -> tuple[Photo, tuple[int, int]]:
        """Return the photo, and its own size (W, H).

        Where that is faster, it is decoded with about `side` pixels on its longer side.
        """


def label_map(
    net: DeepLabV3Plus,
    image: Photo,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    *,
    crop_size: Size | None = None,
    overlap: float | None = None,
) -> NDArray[np.uint8]:
    """Class ids of a photo: (H, W, C) uint8 -> (H, W) uint8.

    `crop_size` overrides the network's own crop size (H, W): smaller photos are
    padded to it, and windows have this size. With `overlap`, the share of a
    window that its neighbour covers too (0 <= overlap < 1), larger photos run
    window by window. Raises ValueError for an image of another shape or dtype,
    for scales that are empty or not positive, and for an overlap out of range.
    """
    crop_size = crop_size or net.config.crop_size
    padded, (height, width) = prepare(net, image, scales, crop_size, overlap)
    window = _window(padded, crop_size, overlap)
    with torch.inference_mode():
        if tuple(scales) == (1.0,) and not flip and window == padded.shape[2:]:
            scores = full_logits(net, padded, 1.0)  # softmax would not change the argmax
        else:
            scores = sliding_probabilities(
                net, padded, scales, flip=flip, window=window, overlap=overlap or 0.0
            )
        labels = scores[0, :, :height, :width].argmax(0)
    return labels.to(torch.uint8).cpu().numpy()


def served_map(
    net: DeepLabV3Plus, photo: Photo | Source, scales: Sequence[float] = (1.0,), flip: bool = False
) -> NDArray[np.uint8]:
    """Class ids as the service gives them with the exported file: a photo -> (H, W) uint8.

    A photo larger than the crop size is shrunk to it, and its label map enlarged again; in a
    smaller one nothing differs from `label_map`. Errors as there, and those of the source.
    """
    image, (width, height) = fitted(photo, net.config.crop_size)
    labels = label_map(net, image, scales, flip)
    return labels[nearest(labels.shape[0], height)][:, nearest(labels.shape[1], width)]


def fitted(photo: Photo | Source, crop_size: Size) -> tuple[Photo, tuple[int, int]]:
    """Return a photo that fits into the crop size (H, W), and its own size (W, H).

    The pixels are those that the service gives a network. It decodes a large JPEG at a fraction of
    its size, so give the source of a file: pixels (H, W, C) uint8 have been decoded whole.
    """
    if isinstance(photo, np.ndarray):
        image, size = photo, (photo.shape[1], photo.shape[0])
    else:
        image, size = photo.reduced(max(crop_size))
    return shrunk(image, crop_size, size[::-1]), size


def shrunk(image: Photo, crop_size: Size, of: Size | None = None) -> Photo:
    """A photo that fits into the crop size (H, W), as service/images/imaging.py makes it.

    `of`: (H, W) of the photo, if the image was decoded at a fraction of that.
    """
    height, width = of or image.shape[:2]
    scale = min(1.0, crop_size[0] / height, crop_size[1] / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == image.shape[1::-1]:
        return image
    if image.shape[2] != PHOTO.channels:
        return resized(image, size, reducing_gap=2.0)
    picture = Image.fromarray(image)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def nearest(have: int, want: int) -> NDArray[np.intp]:
    """For each of `want` pixels the index of the nearest of `have`, by their centres."""
    return ((np.arange(want) + 0.5) * (have / want)).astype(np.intp)


def probabilities(
    net: DeepLabV3Plus,
    image: Photo,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    *,
    crop_size: Size | None = None,
    overlap: float | None = None,
) -> NDArray[np.float32]:
    """Class probabilities, averaged over all passes: (H, W, C) uint8 -> (K, H, W) float32.

    Options and errors as for `label_map`.
    """
    crop_size = crop_size or net.config.crop_size
    padded, (height, width) = prepare(net, image, scales, crop_size, overlap)
    window = _window(padded, crop_size, overlap)
    with torch.inference_mode():
        average = sliding_probabilities(
            net, padded, scales, flip=flip, window=window, overlap=overlap or 0.0
        )
    return average[0, :, :height, :width].float().cpu().numpy()


def prepare(
    net: DeepLabV3Plus,
    image: Photo,
    scales: Sequence[float],
    crop_size: Size,
    overlap: float | None,
) -> tuple[Tensor, Size]:
    """Check the arguments; return the padded image (1, C, H', W') and the photo's size."""
    channels = net.config.channels
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        kind = ", RGB" if channels == 3 else ""
        raise ValueError(
            f"image is {image.dtype} {image.shape}; give uint8 (H, W, {channels}){kind}"
        )
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales={tuple(scales)}: give one or more numbers above 0")
    if overlap is not None and not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}: give a share of the window, from 0 to below 1")
    if net.training:
        raise ValueError("net is in training mode, where batch norm mixes images; call net.eval()")
    parameter = net.logits.weight
    x = torch.from_numpy(np.array(image)).to(parameter.device).permute(2, 0, 1)[None]
    return pad(x.to(parameter.dtype), net, crop_size), image.shape[:2]


def pad(x: Tensor, net: DeepLabV3Plus, crop_size: Size) -> Tensor:
    """Put (1, C, H, W) at the top left of a crop filled with the mean pixel."""
    height, width = (max(n, crop) for n, crop in zip(x.shape[2:], crop_size, strict=True))
    if (height, width) == tuple(x.shape[2:]):
        return x
    padded = net.mean.to(x).expand(1, -1, height, width).clone()
    padded[..., : x.shape[2], : x.shape[3]] = x
    return padded


def _window(padded: Tensor, crop_size: Size, overlap: float | None) -> Size:
    """The size of one pass through the network: the whole photo, or a window."""
    return crop_size if overlap is not None else (padded.shape[2], padded.shape[3])


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """First pixels of evenly spaced windows that cover `side` pixels.

    Neighbours share at least `overlap` of a window.
    """
    if side <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    steps = math.ceil((side - window) / step)
    return [round(index * (side - window) / steps) for index in range(steps + 1)]


def sliding_probabilities(
    net: DeepLabV3Plus,
    image: Tensor,
    scales: Sequence[float],
    *,
    flip: bool,
    window: Size,
    overlap: float,
) -> Tensor:
    """Mean probabilities over windows, each run like a photo: (1, C, H, W) -> (1, K, H, W).

    The image is at least as large as the window.
    """
    height, width = image.shape[2:]
    total = image.new_zeros((1, net.config.num_classes, height, width))
    windows = image.new_zeros((height, width))
    for top in window_starts(height, window[0], overlap):
        for left in window_starts(width, window[1], overlap):
            place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            total[place] += average_probabilities(net, image[place], scales, flip=flip)
            windows[place] += 1
    return total.div_(windows)


def average_probabilities(
    net: DeepLabV3Plus, image: Tensor, scales: Sequence[float], *, flip: bool
) -> Tensor:
    """Mean probabilities over scales and flips: (N, C, H, W) in [0, 255] -> (N, K, H, W)."""
    total: Tensor | None = None
    passes = [
        (scale, flipped) for scale in scales for flipped in ((False, True) if flip else (False,))
    ]
    for scale, flipped in passes:
        probability = F.softmax(full_logits(net, image, scale, flipped=flipped), dim=1)
        total = probability if total is None else total.add_(probability)
    assert total is not None
    return total.div_(len(passes))


def full_logits(
    net: DeepLabV3Plus, image: Tensor, scale: float, *, flipped: bool = False
) -> Tensor:
    """Logits of one pass at the image's own size: (N, C, H, W) in [0, 255] -> (N, K, H, W)."""
    align = net.config.align_corners
    height, width = image.shape[2:]
    x = image
    if scale != 1.0:
        x = resize(x, (scaled(height, scale), scaled(width, scale)), align_corners=align)
    logits = net(x.flip(3) if flipped else x)
    if flipped:
        logits = logits.flip(3)
    if scale < 1.0:  # at scale 1 and above, the logits already have at least this size
        between = (scaled(height, 1.0 / net.stride), scaled(width, 1.0 / net.stride))
        logits = resize(logits, between, align_corners=align)
    return resize(logits, (height, width), align_corners=align)
