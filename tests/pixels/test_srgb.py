from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixels import srgb


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_strips_of_a_transparent_photo_join_without_a_seam(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many strips, of which the last is shorter, give the pixels of a single one."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 30, 4), np.uint8)).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    whole = np.asarray(srgb.to_srgb(image, None))
    monkeypatch.setattr(srgb, "STRIP", 7 * 30)
    assert (np.asarray(srgb.to_srgb(image, None)) == whole).all()


def test_grey_of_16_bits_keeps_its_highest_8() -> None:
    """A gradient of all values of a camera, and not what Pillow makes of it: white above 255."""
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    found = np.asarray(srgb.to_srgb(Image.fromarray(values), None))
    assert (found == (values // 256)[..., None]).all()


@pytest.mark.parametrize("profile", [b"", b"no profile", bytes(srgb.MAX_PROFILE + 1)])
def test_a_profile_that_cannot_be_used_changes_nothing(profile: bytes) -> None:
    image = Image.new("RGB", (3, 2), (10, 200, 30))
    assert srgb.to_srgb(image, profile).tobytes() == image.tobytes()


def test_rgb_is_not_copied_and_outlives_its_file(tmp_path: Path) -> None:
    """A copy of 12 megapixels takes as long as half of their decoding."""
    Image.new("RGB", (3, 2), (10, 200, 30)).save(tmp_path / "photo.png")
    with Image.open(tmp_path / "photo.png") as opened:
        image = srgb.to_srgb(opened, None)
        assert image is opened
    assert image.getpixel((2, 1)) == (10, 200, 30)
