"""Measure how uncertain a network is about a photo, and how different photos are to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.network.deeplab import DeepLabV3Plus
from model.network.inference import Photo, Source, fitted, probabilities

SCALES = (0.75, 1.0, 1.25)  # of the passes that may disagree

Probabilities = NDArray[np.float32]  # (K, H, W)
Vectors = NDArray[np.float32]  # (N, C)


def margin(found: Probabilities) -> float:
    """Return 1 minus the mean distance of the two likeliest classes: 0 is certain, 1 is a tie."""
    best = np.partition(found, -2, axis=0)[-2:]
    return float(1 - (best[1] - best[0]).mean())


def entropy(found: Probabilities) -> float:
    """Return the mean entropy of the pixels as a share of the largest: 0 certain, 1 uniform."""
    return float(_entropies(found).mean() / np.log(len(found)))


def disagreement(passes: Sequence[Probabilities]) -> float:
    """Return the entropy of the mean of several passes minus their mean entropy.

    It is 0 if all passes are equal, however uncertain each is (Houlsby et al. 2011,
    arXiv:1112.5745, with scales instead of samples). A share of the largest, like `entropy`.
    """
    mean = np.asarray(np.mean(passes, axis=0), np.float32)
    own = np.mean([_entropies(each) for each in passes], axis=0)
    return float((_entropies(mean) - own).mean() / np.log(len(mean)))


def _entropies(found: Probabilities) -> NDArray[np.float32]:
    return np.asarray(-(found * np.log(found.clip(1e-12))).sum(axis=0), np.float32)


def measured(net: DeepLabV3Plus, photo: Photo | Source, by: str) -> float:
    """Return the uncertainty of a photo by `margin`, `entropy` or `disagreement`."""
    small, _ = fitted(photo, net.config.crop_size)
    if by == "disagreement":
        return disagreement([probabilities(net, small, (scale,)) for scale in SCALES])
    found = probabilities(net, small)
    return margin(found) if by == "margin" else entropy(found)


def feature(net: DeepLabV3Plus, photo: Photo | Source) -> NDArray[np.float32]:
    """Return the mean of the backbone's last features over the photo, scaled to length 1: (C,)."""
    small, _ = fitted(photo, net.config.crop_size)
    parameter = net.logits.weight
    x = torch.from_numpy(np.array(small)).to(parameter.device).permute(2, 0, 1)[None]
    with torch.inference_mode():
        last = net.backbone((x.to(parameter.dtype) - net.mean) / net.std).high
        mean = last.float().mean((0, 2, 3))
    vector = mean.cpu().numpy()
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)


def spread(vectors: Vectors, count: int) -> list[int]:
    """Choose photos that cover the others: greedy k-centre, the first the nearest to the mean.

    Each next photo is the farthest from all chosen (Sener and Savarese 2018, arXiv:1708.00489).
    """
    first = int((vectors @ vectors.mean(axis=0)).argmax())
    chosen, distance = [first], _distances(vectors, vectors[first])
    while len(chosen) < min(count, len(vectors)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, _distances(vectors, vectors[chosen[-1]]))
        distance[chosen] = -1
    return chosen


def _distances(vectors: Vectors, one: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.linalg.norm(vectors - one, axis=1), np.float32)
