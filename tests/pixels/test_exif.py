"""Pictures are turned as their EXIF data says, even if the rest of that data is damaged."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from model.data.photo import PhotoFile, read_photo, turn, upright_size
from pixels import exif
from service.images.imaging import decode, open_checked

# In little-endian order: the maker as a fraction, which Pillow reads and cannot write, and the
# orientation 6.
DAMAGED = (
    b"Exif\0\0II*\0"
    + struct.pack("<IH", 8, 2)
    + struct.pack("<HHII", 0x010F, 5, 1, 38)
    + struct.pack("<HHIHH", exif.ORIENTATION, 3, 1, 6, 0)
    + struct.pack("<III", 0, 1, 2)
)


def stored() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))


def tagged(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[exif.ORIENTATION] = orientation
    return data


def encoded(data: Image.Exif | bytes, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    stored().save(out, kind, exif=data)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_picture_is_turned_as_pillow_does(orientation: int, kind: str) -> None:
    """Once: the result does not ask to be turned again."""
    with Image.open(io.BytesIO(encoded(tagged(orientation), kind))) as image:
        value = exif.orientation(image)
        turned = exif.upright(image, value)
        expected = ImageOps.exif_transpose(image)
    assert value == (orientation if 1 <= orientation <= 8 else 1)
    assert (np.asarray(turned) == np.asarray(expected)).all()
    assert (turned.size != stored().size) == (value in exif.ON_THEIR_SIDE)
    if value != 1:
        assert exif.orientation(turned) == 1


def test_damaged_data_still_turns_a_photo_everywhere(tmp_path: Path) -> None:
    """The size from the header is that of the pixels, in training and in the service."""
    data = encoded(DAMAGED)
    with Image.open(io.BytesIO(data)) as image, pytest.raises(AttributeError):
        ImageOps.exif_transpose(image)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with Image.open(path) as image:
        expected = np.rot90(np.asarray(image), -1)
    assert (read_photo(path) == expected).all()
    assert upright_size(path) == PhotoFile(path).size == (24, 40)
    served = decode(open_checked(data, 10**4))
    assert (np.asarray(served.image) == expected).all()
    assert (served.size, served.orientation) == ((24, 40), 6)


def test_data_that_cannot_be_read_turns_nothing() -> None:
    with Image.open(io.BytesIO(encoded(b"Exif\0\0MM\0*\xff\xff\xff\xff", "PNG"))) as image:
        assert turn(image) == 1
        assert exif.upright(image, 1) is image
