"""Strong augmentation: warp, recolour and degrade photos more than a camera would.

A network soon memorises a short list of photos; it cannot if they look different every
time. This follows the strong augmentation of FixMatch (Sohn et al. 2020); each change has
even odds.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from model.data.augment import jitter
from model.data.dataset import VOID

Pixels = NDArray[np.uint8]


class Perturbed(NamedTuple):
    """A perturbed photo, its ids, and where its pixels come from."""

    image: Image.Image
    mask: Pixels
    source: list[float] | None  # coefficients of Pillow's PERSPECTIVE; None without a warp


def perturb(image: Image.Image, mask: Pixels, rng: np.random.Generator, pad: Pixels) -> Perturbed:
    """Warp, recolour and degrade an RGB photo, each at random, and warp its ids (H, W) alike.

    Pixels from beyond the photo become `pad` (the mean pixel) and void.
    """
    source = None
    if rng.random() < 0.5:
        source = draw_warp(image.size, rng)
        image, mask = warp(image, mask, source, pad)
    if rng.random() < 0.5:
        image = recolor(image, rng)
    if rng.random() < 0.5:
        image = degrade(image, rng)
    return Perturbed(image, mask, source)


def draw_warp(size: tuple[int, int], rng: np.random.Generator) -> list[float]:
    """Choose how to rotate, scale, shear and tilt a photo of `size` (W, H) about its centre.

    Returns the eight coefficients of Pillow's PERSPECTIVE, which map output to input pixels.
    """
    angle = np.deg2rad(rng.uniform(-25, 25))
    scale = np.exp(rng.uniform(-0.5, 0.4))
    shear = rng.uniform(-0.25, 0.25)
    aspect = np.exp(rng.uniform(-0.25, 0.25))
    tilt = rng.uniform(-4e-4, 4e-4, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[aspect, shear], [0, 1 / aspect]]) / scale
    middle = np.array(size) / 2
    shift = middle * (1 + tilt @ middle) - linear @ middle  # the middle stays where it is
    return [float(value) for value in (*linear[0], shift[0], *linear[1], shift[1], *tilt)]


def warp(
    image: Image.Image, mask: Pixels, source: list[float], pad: Pixels
) -> tuple[Image.Image, Pixels]:
    """Warp image and mask by the coefficients of `draw_warp`; the size stays."""
    kind, data = Image.Transform.PERSPECTIVE, source
    fill = tuple(int(value) for value in pad)
    bent = image.transform(image.size, kind, data, Image.Resampling.BICUBIC, fillcolor=fill)
    ids = Image.fromarray(mask).transform(
        image.size, kind, data, Image.Resampling.NEAREST, fillcolor=VOID
    )
    return bent, np.asarray(ids)


def recolor(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Grey, channels swapped or another hue; then brightness, contrast and saturation by half."""
    choice = rng.random()
    if choice < 0.2:
        image = image.convert("L").convert("RGB")
    elif choice < 0.35:
        channels = image.split()
        image = Image.merge("RGB", [channels[index] for index in rng.permutation(3)])
    else:
        hsv = np.array(image.convert("HSV"))
        hsv[..., 0] += np.uint8(int(rng.integers(-40, 41)) % 256)  # of 256 hues, around the circle
        image = Image.fromarray(hsv, "HSV").convert("RGB")
    return Image.fromarray(jitter(np.asarray(image), rng, 0.5))


def degrade(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur, compress, add noise or sharpen too much."""
    choice = rng.integers(4)
    if choice == 0:
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2)))
    if choice == 1:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(15, 60)))
        return Image.open(file).convert("RGB")
    if choice == 2:
        pixels = np.asarray(image)
        noise = rng.normal(0, rng.uniform(3, 20), pixels.shape)
        return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    radius, percent = rng.uniform(1, 2.5), int(rng.integers(50, 200))
    return image.filter(ImageFilter.UnsharpMask(radius, percent, 0))
