"""Convert pixels of any mode to sRGB: apply ICC profiles, and make transparency white.

Networks are trained on sRGB and served sRGB, and screens show it. Without the conversion an
Adobe RGB photo is pale, and a CMYK photo is off by some twenty levels. Little CMS converts;
ICC.1:2022.
"""

from __future__ import annotations

import io
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageCms
from PIL.ImageCms import ImageCmsProfile, ImageCmsTransform, PyCMSError

from pixels.depth import eight_bits

SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode
MAX_PROFILE = 8 * 1024 * 1024  # bytes; larger ones are ignored
STRIP = 1 << 20  # pixels
SRGB_TOLERANCE = 2  # levels; sRGB profiles of different makers differ by so much in the shadows
REMEMBERED = 8  # cached profiles: a camera or an archive uses one or two


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert a decoded image of any mode to RGB, of the same size; perhaps the same image.

    `profile`: the ICC profile; one that is broken or for another mode is ignored. Grey of 16 bits
    is reduced to 8 as `pixels.depth` says; the caller does that for colours.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip it, not scale it
        image = Image.fromarray(eight_bits(np.asarray(image)))
    if image.has_transparency_data:
        return _on_white(image, profile)
    return _converted(image, profile)


def _on_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Make transparent pixels white: their colours are arbitrary. In strips, to save memory."""
    shown = Image.new("RGB", image.size, "white")
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgba = part.convert("RGBA")
        colors = _converted(_opaque(part, rgba), profile)
        shown.paste(colors, (0, top), mask=rgba.getchannel("A"))
    return shown


def _opaque(image: Image.Image, rgba: Image.Image) -> Image.Image:
    return image.getchannel("L") if image.mode == "LA" else rgba.convert("RGB")


def _converted(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "LAB":
        return _from_lab().apply(image)
    base = image if image.mode in SPACES.values() else image.convert("RGB")
    transform = _transform(profile, base.mode) if profile and len(profile) <= MAX_PROFILE else None
    if transform is None:
        return _rgb(base)
    return transform.apply(base)


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB. RGB is not copied: that would take up to half as long as decoding a JPEG."""
    image.load()  # the caller may close its file
    return image if image.mode == "RGB" else image.convert("RGB")


@cache
def _from_lab() -> ImageCmsTransform:
    return ImageCmsTransform(_made("LAB"), _made("sRGB"), "LAB", "RGB")


def _made(space: Literal["LAB", "sRGB"]) -> ImageCmsProfile:
    return ImageCmsProfile(ImageCms.createProfile(space))


@lru_cache(REMEMBERED)
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """Return the conversion from a profile to sRGB, or None if none is needed or possible."""
    try:
        opened = ImageCmsProfile(io.BytesIO(profile))
        if SPACES.get(opened.profile.xcolor_space) != mode:
            return None
        transform = ImageCmsTransform(opened, _made("sRGB"), mode, "RGB")
    except (PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if mode == "RGB" and _changes_nothing(transform) else transform


def _changes_nothing(transform: ImageCmsTransform) -> bool:
    """Return whether a profile is sRGB, by what it does: "GIMP built-in Linear sRGB" is not."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    converted = np.asarray(transform.apply(Image.fromarray(colors)))
    return int(np.abs(converted.astype(int) - colors).max()) <= SRGB_TOLERANCE
