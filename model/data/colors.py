"""Convert pixels from the colour space of an ICC profile to sRGB, as the service does.

A network is served sRGB, so it is trained on sRGB. Without the conversion an Adobe RGB photo
is pale, and a CMYK photo is off by about twenty levels. Little CMS converts; ICC.1:2022.
"""

from __future__ import annotations

import io
from functools import cache, lru_cache
from typing import Literal

from PIL import Image, ImageCms
from PIL.ImageCms import ImageCmsProfile, ImageCmsTransform, PyCMSError

SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode
MAX_PROFILE = 8 * 1024 * 1024  # bytes; the service ignores larger ones too
REMEMBERED = 8  # cached profiles: a camera or an archive uses one or two


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an opaque image to RGB; ignore a profile that is broken or for another mode."""
    if image.mode == "LAB":
        return _from_lab().apply(image)
    base = image if image.mode in SPACES.values() else image.convert("RGB")
    transform = _transform(profile, base.mode) if profile and len(profile) <= MAX_PROFILE else None
    return base.convert("RGB") if transform is None else transform.apply(base)


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
        about = opened.profile
        if SPACES.get(about.xcolor_space) != mode or "sRGB" in (about.profile_description or ""):
            return None
        return ImageCmsTransform(opened, _made("sRGB"), mode, "RGB")
    except (PyCMSError, OSError, ValueError, TypeError):
        return None
