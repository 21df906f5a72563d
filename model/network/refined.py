"""Label maps of photos with small regions, holes and unsure pixels removed, as in the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from model.network.deeplab import DeepLabV3Plus
from model.network.inference import (
    Labels,
    Photo,
    average_probabilities,
    label_map,
    nearest,
    prepare,
    probabilities,
    shrunk,
)
from model.network.layers import resize
from postprocess.areas import area
from postprocess.errors import InvalidOption
from postprocess.grid import Grid, Placing
from postprocess.refine import Below, Refinement, below_label
from postprocess.runs import Spread
from postprocess.smooth import candidates, smooth_labels
from postprocess.sureness import min_confidences

BACKGROUND = "background"


def refinement(
    classes: Sequence[str],
    *,
    min_confidence: float | str | Mapping[str, float] = 0,
    below: Below = "background",
    min_area: float | str = 0,
    fill_holes: float | str = 0,
) -> Refinement:
    """Parse the options, which are those of the service's POST /segment, for these classes.

    Raises postprocess.errors.InvalidOption.
    """
    return Refinement(
        min_confidences(min_confidence, classes),
        below_label(below, background(classes)),
        area("min_area", min_area),
        area("fill_holes", fill_holes),
    )


def background(classes: Sequence[str]) -> int | None:
    """The id of the class `background`, if there is one."""
    return classes.index(BACKGROUND) if BACKGROUND in classes else None


def refined_map(
    net: DeepLabV3Plus,
    image: Photo,
    refine: Refinement,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    *,
    overlap: float | None = None,
    whole: bool = False,
    smooth: bool = False,
) -> Labels:
    """Class ids of a photo after `refine`, 255 for none: (H, W, 3) uint8 -> (H, W) uint8.

    A photo larger than the crop size is shrunk to it, unless it runs whole or in windows that
    `overlap`. `smooth`: labels that follow the photo's edges at its own size. Errors as for
    `label_map`, postprocess.errors.TooComplex, and InvalidOption for `smooth` in such windows.
    """
    if smooth and (whole or overlap is not None):
        raise InvalidOption("smooth: labels of a photo that is taken whole or in windows stay")
    height, width = image.shape[:2]
    fitted = image if whole or overlap is not None else shrunk(image, net.config.crop_size)
    confidence = None
    if refine.needs_confidence:
        scores = probabilities(net, fitted, scales, flip, overlap=overlap)
        labels = scores.argmax(axis=0).astype(np.uint8)
        confidence = (scores.max(axis=0) * 255 + 0.5).astype(np.uint8)  # as in exported files
    else:
        labels = label_map(net, fitted, scales, flip, overlap=overlap)
    rows, columns = nearest(labels.shape[0], height), nearest(labels.shape[1], width)
    if smooth:
        size = (width, height)
        grid = grid_of(net, fitted, size, scales, flip)
        labels = smooth_labels(grid, candidates(labels), fitted, size)
        if confidence is not None:
            confidence = confidence[rows][:, columns]
        return refine.apply(labels, confidence, background(net.classes))
    spread = Spread(np.bincount(rows), np.bincount(columns))
    labels = refine.apply(labels, confidence, background(net.classes), spread)
    return labels[rows][:, columns]


def grid_of(
    net: DeepLabV3Plus,
    fitted: Photo,
    size: tuple[int, int],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Grid:
    """Return the probabilities of a fitted photo (h, w, 3) at the network's own resolution.

    `size`: (W, H) of the photo before it was shrunk.
    """
    padded, valid = prepare(net, fitted, scales, net.config.crop_size, None)
    align = net.config.align_corners
    with torch.inference_mode():
        if tuple(scales) == (1.0,) and not flip:
            values = F.softmax(net(padded), dim=1)
        else:
            scores = average_probabilities(net, padded, scales, flip=flip)
            height, width = (-(-side // net.stride) for side in padded.shape[2:])
            values = resize(scores, (height, width), align_corners=align)
        found = (values[0].float() * 255 + 0.5).to(torch.uint8).cpu().numpy()
    placing: Placing = "corners" if align else "centres"
    sides = (padded.shape[2], padded.shape[3])
    return Grid.of(found, placing, sides, valid, size)
