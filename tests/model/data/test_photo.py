"""Photos are read upright as RGB, and a file that cannot be read is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from model.data.photo import open_photo, read_photo
from tests.service.images.profiles import cmyk_profile, wide_profile


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "photo.tif"
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    pixels = read_photo(path)
    assert pixels.shape == (4, 5, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 255).all()


@pytest.mark.parametrize("depth", ["u1", "<u2", ">u2"])
@pytest.mark.parametrize("colors", ["grey", "palette", "transparent", "grey transparent"])
def test_the_service_sees_the_same_pixels(tmp_path: Path, depth: str, colors: str) -> None:
    """Training and service read transparency and more than 8 bits in the same way."""
    from service.images import imaging

    grey = np.arange(0, 240, dtype=depth).reshape(12, 20)
    image = Image.fromarray(grey if depth == "u1" else grey * 257)
    if colors == "palette":
        image = image.convert("L").convert("P")
        image.info["transparency"] = 7
    elif colors == "transparent":
        image = image.convert("RGBA")
        image.putalpha(Image.fromarray(grey.astype(np.uint8)))
    elif colors == "grey transparent":
        image = image.convert("LA")
        image.putalpha(100)
    path = tmp_path / ("photo.png" if colors == "palette" else "photo.tif")
    image.save(path)
    served = imaging.decode(imaging.open_checked(path.read_bytes(), 10**6)).image
    pixels = read_photo(path)
    assert (pixels == np.asarray(served)).all()
    if colors == "grey":
        assert (pixels[..., 0] == grey).all()


def colourful(mode: str) -> Image.Image:
    """A picture with many colours, (40, 50)."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((50, 40))
    if mode == "RGBA":
        image.putalpha(Image.fromarray(rng.integers(0, 256, (40, 50), np.uint8)))
        return image
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "photo.jpg"),
        ("RGB", "photo.png"),
        ("RGBA", "photo.png"),
        ("P", "photo.png"),
        ("CMYK", "photo.jpg"),
        ("CMYK", "photo.tif"),
        ("LAB", "photo.tif"),
    ],
)
def test_a_colour_profile_is_applied_as_the_service_does(
    tmp_path: Path, mode: str, name: str
) -> None:
    """A network does worse if training and service give it different colours."""
    from service.images import imaging

    path = tmp_path / name
    source = colourful("RGB").convert("LAB") if mode == "LAB" else colourful(mode)
    profile = cmyk_profile() if mode == "CMYK" else wide_profile()
    source.save(path, icc_profile=None if mode == "LAB" else profile)
    served = imaging.decode(imaging.open_checked(path.read_bytes(), 10**6)).image
    pixels = read_photo(path)
    assert (pixels == np.asarray(served)).all()
    with Image.open(path) as plain:
        if mode in {"RGB", "CMYK"}:
            assert (pixels != np.asarray(plain.convert("RGB"))).any()


@pytest.mark.parametrize("profile", [b"broken", cmyk_profile()])
def test_a_profile_that_does_not_fit_changes_nothing(tmp_path: Path, profile: bytes) -> None:
    colourful("RGB").save(tmp_path / "photo.png", icc_profile=profile)
    assert (read_photo(tmp_path / "photo.png") == np.asarray(colourful("RGB"))).all()


@pytest.mark.parametrize(
    ("dtype", "options", "says"),
    [
        ("u2", {"planarconfig": "separate", "photometric": "rgb"}, "16 bits in planes"),
        ("u2", {"photometric": "miniswhite"}, "too dark or as a negative"),
        ("f4", {"photometric": "minisblack"}, "32 bits have an unknown range"),
        ("u4", {"photometric": "minisblack"}, "cannot be read"),
        ("i4", {"photometric": "minisblack"}, "32 bits have an unknown range"),
    ],
)
def test_photos_that_pillow_misreads_are_refused_by_name(
    tmp_path: Path, dtype: str, options: dict[str, Any], says: str
) -> None:
    """Otherwise scrambled, dark or white photos would be trained on silently."""
    shape = (3, 8, 9) if options["photometric"] == "rgb" else (8, 9)
    path = tmp_path / "photo.tif"
    tifffile.imwrite(path, np.ones(shape, dtype), metadata=None, **options)
    with pytest.raises(OSError, match=rf"photo\.tif cannot be read: .*{says}|{says}") as refused:
        open_photo(path)
    assert refused.value.errno is None  # damage, not a missing file


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    photo = Image.new("RGB", (16, 8))
    photo.paste((255, 255, 255), (0, 0, 8, 8))  # the left half
    photo.save(tmp_path / "photo.png", exif=exif)
    pixels = read_photo(tmp_path / "photo.png")
    assert pixels.shape == (16, 8, 3)
    assert (pixels[:8] == 255).all()
    assert (pixels[8:] == 0).all()


def test_a_damaged_file_is_distinguished_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.png"
    with pytest.raises(FileNotFoundError, match=r"photo\.png"):
        open_photo(path)
    path.write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"photo\.png cannot be read") as damaged:
        open_photo(path)
    assert damaged.value.errno is None
    Image.new("RGB", (60, 50)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OSError, match=r"photo\.png cannot be read: Image size \(3000 pixels\)"):
        open_photo(path)
