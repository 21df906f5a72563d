"""Generate a small data set to try things on: discs, squares and triangles on noisy ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model.data.folder import DESCRIPTION
from model.data.pairs import write_mask

CLASSES = ("ground", "disc", "square", "triangle")
PALETTE = ((0, 0, 0), (220, 60, 50), (60, 180, 75), (65, 105, 225))
RECIPE_FILE = "recipe.toml"
COUNTS = {"train": 24, "val": 8}
SIZE = (96, 72)  # pixels, (W, H)
TOML = """\
classes = ["ground", "disc", "square", "triangle"]
palette = [[0, 0, 0], [220, 60, 50], [60, 180, 75], [65, 105, 225]]
"""
# The light network on crops as large as the pictures: minutes on two cores.
RECIPE = """\
description = "Shapes: a few iterations of the light network"
init = "imagenet"
dataset = "folder"
split = "train"
iterations = 80
batch_size = 8
learning_rate = 0.01
head_multiplier = 10.0
nesterov = true
warmup = 10
batch_norm_momentum = 0.1

[model]
backbone = "efficientnet_lite0"
num_classes = 4
crop_size = [97, 97]
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
aspp_separable = true
decoder_separable = true

[augment]
crop = 97
"""


def make(root: Path, seed: int = 0) -> list[Path]:
    """Write images/, masks/, dataset.toml and recipe.toml below `root`, the same for a seed.

    Returns the TOML files that were there with another content: somebody has edited them, so
    they are kept.
    """
    rng = np.random.default_rng(seed)
    for split, count in COUNTS.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = draw(rng)
            Image.fromarray(image).save(root / "images" / split / f"{index:03}.jpg", quality=95)
            write_mask(root / "masks" / split / f"{index:03}.png", mask, PALETTE)
    texts = {root / DESCRIPTION: TOML, root / RECIPE_FILE: RECIPE}
    edited = [path for path, text in texts.items() if _is_other(path, text)]
    for path in texts.keys() - {*edited}:
        path.write_text(texts[path], encoding="utf-8")
    return edited


def _is_other(path: Path, text: str) -> bool:
    """Whether the file exists with a content other than `text`, however its lines end."""
    return path.exists() and path.read_bytes().splitlines() != text.encode().splitlines()


def draw(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One photo (H, W, 3) and its class ids (H, W), both uint8; one shape of each kind."""
    width, height = SIZE
    mask = Image.new("L", SIZE)
    pen = ImageDraw.Draw(mask)
    for label in rng.permutation([1, 2, 3]).tolist():
        r = int(rng.integers(10, 18))
        x, y = int(rng.integers(r, width - r)), int(rng.integers(r, height - r))
        box = (x - r, y - r, x + r, y + r)
        if label == 1:
            pen.ellipse(box, fill=label)
        elif label == 2:
            pen.rectangle(box, fill=label)
        else:
            pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=label)
    ids = np.asarray(mask)
    tints = np.array([(128, 128, 128), *PALETTE[1:]])
    noisy = tints[ids] + rng.normal(0, 20, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8), ids
