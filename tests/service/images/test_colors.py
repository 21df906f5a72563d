"""Colour profiles, compared with Little CMS called directly, and images without a profile."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from service.images import imaging
from service.images.imaging import EncodedPhoto
from tests.service.images.profiles import cmyk_profile, swapped_srgb_profile, wide_profile

GRADIENT = np.stack(np.meshgrid(np.arange(0, 256, 5), np.arange(0, 256, 7)), -1).astype(np.uint8)
RGB = np.concatenate([GRADIENT, 255 - GRADIENT[..., :1]], axis=-1)  # (37, 52, 3)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def shown(data: bytes, **options: object) -> NDArray[np.int_]:
    photo = imaging.decode(imaging.open_checked(data, 10**6), **options)  # type: ignore[arg-type]
    return np.asarray(photo.image).astype(int)


def by_little_cms(image: Image.Image, profile: bytes) -> NDArray[np.int_]:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    srgb = ImageCms.createProfile("sRGB")
    made = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    assert made is not None
    return np.asarray(made).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_wide_profile_is_converted_to_srgb(kind: str) -> None:
    image, profile = Image.fromarray(RGB), wide_profile()
    expected = by_little_cms(image, profile)
    assert np.abs(expected - RGB).mean() > 5  # the conversion changes the colours
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (shown(encoded(image, kind, icc_profile=profile, **options)) == expected).all()


def test_cmyk_is_converted_by_its_profile() -> None:
    ink = np.concatenate([RGB, np.full((*RGB.shape[:2], 1), 30, np.uint8)], axis=-1)
    image, profile = Image.fromarray(ink, "CMYK"), cmyk_profile()
    expected = by_little_cms(image, profile)
    assert np.abs(expected - np.asarray(image.convert("RGB"))).mean() > 5
    assert (shown(encoded(image, "TIFF", icc_profile=profile)) == expected).all()
    jpeg = shown(encoded(image, "JPEG", icc_profile=profile, quality=100, subsampling=0))
    assert np.abs(jpeg - expected).mean() < 2


def test_an_overlay_of_a_large_photo_is_converted_too() -> None:
    image, profile = Image.fromarray(RGB).resize((800, 600)), wide_profile()
    data = encoded(image, "JPEG", icc_profile=profile, quality=100, subsampling=0)
    expected = by_little_cms(image, profile)
    picture = np.asarray(EncodedPhoto((800, 600), data=data).whole).astype(int)
    assert np.abs(picture - expected).mean() < 1


def test_transparency_is_white_after_the_conversion_as_before() -> None:
    image, profile = Image.fromarray(RGB).convert("RGBA"), wide_profile()
    image.putalpha(Image.fromarray(GRADIENT[..., 1]))
    colors = by_little_cms(image.convert("RGB"), profile)
    alpha = GRADIENT[..., 1:].astype(int)
    expected = (colors * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(shown(encoded(image, "PNG", icc_profile=profile)) - expected).max() <= 1


def test_a_grey_profile_fits_grey_only() -> None:
    """A profile for another mode than the photo's is ignored."""
    grey = Image.fromarray(RGB[..., 0])
    plain = shown(encoded(grey, "PNG"))
    assert (shown(encoded(grey, "PNG", icc_profile=wide_profile())) == plain).all()


@pytest.mark.parametrize("profile", [b"", b"junk", wide_profile()[:200], bytes(5000)])
def test_a_broken_profile_does_not_cost_the_photo(profile: bytes) -> None:
    data = encoded(Image.fromarray(RGB), "TIFF", icc_profile=profile)
    assert (shown(data) == RGB).all()


def test_an_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (shown(encoded(Image.fromarray(RGB), "PNG", icc_profile=profile)) == RGB).all()


def test_a_profile_named_after_srgb_is_judged_by_what_it_does() -> None:
    """GIMP embeds "GIMP built-in Linear sRGB": its name has sRGB in it, its colours are others."""
    image, profile = Image.fromarray(RGB), swapped_srgb_profile()
    assert "sRGB" in ImageCms.getProfileName(io.BytesIO(profile))
    expected = RGB[..., [1, 0, 2]].astype(int)
    assert np.abs(shown(encoded(image, "PNG", icc_profile=profile)) - expected).max() <= 2


def test_lightness_and_hue_of_a_lab_file_become_srgb() -> None:
    lab = Image.new("LAB", (4, 3), (255, 128, 128))  # white; a and b of zero are 128
    assert shown(encoded(lab, "TIFF")).min() >= 254
