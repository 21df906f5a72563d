"""Pixels of any mode to sRGB: profiles are applied, transparency becomes white.

Networks are trained on sRGB and screens show it. Without this an Adobe RGB photo is pale and
a CMYK one is off by some twenty levels. ICC.1:2022; the conversion is Little CMS's.
"""

from __future__ import annotations

import io
from functools import cache, lru_cache
from typing import Literal

from PIL import Image, ImageCms
from PIL.ImageCms import ImageCmsProfile, ImageCmsTransform, PyCMSError

from service.images import tiff

WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's own word for Pillow's mode
MAX_PROFILE = 8 * 1024 * 1024
REMEMBERED = 8  # profiles: a camera or an archive uses one or two


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A decoded image as RGB. A profile that is broken or of other pixels is passed over."""
    if image.mode.startswith("I;16"):  # Pillow would clip it, not scale it
        image = Image.fromarray(tiff.eight_bits(image))
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        # The colours of transparent pixels are arbitrary: show white.
        shown = Image.new("RGB", rgba.size, "white")
        shown.paste(_converted(_opaque(image, rgba), profile), mask=rgba.getchannel("A"))
        return shown
    return _converted(image, profile)


def _opaque(image: Image.Image, rgba: Image.Image) -> Image.Image:
    return image.getchannel("L") if image.mode == "LA" else rgba.convert("RGB")


def _converted(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "LAB":
        return _from_lab().apply(image)
    base = image if image.mode in SPACES.values() else image.convert("RGB")
    transform = _transform(profile, base.mode) if profile and len(profile) <= MAX_PROFILE else None
    if transform is None:
        return base.convert("RGB")
    return transform.apply(base)


@cache
def _from_lab() -> ImageCmsTransform:
    return ImageCmsTransform(_made("LAB"), _made("sRGB"), "LAB", "RGB")


def _made(space: Literal["LAB", "sRGB"]) -> ImageCmsProfile:
    return ImageCmsProfile(ImageCms.createProfile(space))


@lru_cache(REMEMBERED)
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """From a profile to sRGB; None where there is nothing to convert."""
    try:
        opened = ImageCmsProfile(io.BytesIO(profile))
        about = opened.profile
        if SPACES.get(about.xcolor_space) != mode or "sRGB" in (about.profile_description or ""):
            return None
        return ImageCmsTransform(opened, _made("sRGB"), mode, "RGB")
    except (PyCMSError, OSError, ValueError, TypeError):
        return None
