"""HEIC and AVIF photos, as phones and browsers write them."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageCms, ImageOps

from service.decoders import processes
from service.errors import ImageTooLarge, InvalidImage
from service.http.app import create_app
from service.images import heif, imaging
from service.inference import models
from service.settings import Settings
from tests.service import onnx_models
from tests.service.images.profiles import wide_profile
from tests.service.web import opened, photo

pillow_heif.register_heif_opener()  # for `Image.save`

KINDS = ("AVIF", "HEIF")
CLOSE = 12  # levels: both are lossy


def test_formats_to_send_are_those_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """HEIC is named only where its library is installed."""
    assert heif.readable() == ("AVIF", "HEIC")
    monkeypatch.setattr(heif, "LIBRARY", None)
    assert heif.readable() == ("AVIF",)


def written(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    sampling = {"chroma": 444} if kind == "HEIF" else {"subsampling": "4:4:4"}
    image.save(out, kind, quality=95, **sampling, **options)
    return out.getvalue()


def smooth(width: int = 64, height: int = 48) -> Image.Image:
    """A picture that no corner turned elsewhere leaves the same."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def decoded(data: bytes) -> imaging.DecodedPhoto:
    return imaging.decode(imaging.open_checked(data, 10**7))


def distance(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 48), (63, 47), (1, 1)])
def test_pixels_are_those_that_were_written(kind: str, size: tuple[int, int]) -> None:
    image = smooth(*size)
    found = decoded(written(image, kind))
    assert found.size == found.image.size == size
    assert distance(found.image, image) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_once(kind: str, orientation: int) -> None:
    """Phones write a rotation of the container, and the same in the EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = smooth()
    data = written(image, kind, exif=exif.tobytes())
    upright = image.copy()
    upright.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(upright)
    found = decoded(data)
    assert found.size == expected.size
    assert distance(found.image, expected) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_profiles_and_transparency_are_applied(kind: str) -> None:
    green = Image.new("RGB", (32, 32), (0, 200, 0))
    profile = wide_profile()
    transform = ImageCms.profileToProfile(
        green, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    )
    data = written(green, kind, icc_profile=profile)
    assert transform is not None
    assert distance(decoded(data).image, transform) < CLOSE
    clear = decoded(written(Image.new("RGBA", (32, 32), (9, 9, 9, 0)), kind))
    assert np.asarray(clear.image).min() > 250


def test_ten_bits_become_eight() -> None:
    """Phones write HDR photos of 10 bits."""
    values = np.full((48, 64, 3), 40_000, np.uint16)
    file = pillow_heif.from_bytes("RGB;16", (64, 48), values.tobytes())
    out = io.BytesIO()
    file.save(out, quality=95)
    assert np.abs(np.asarray(decoded(out.getvalue()).image, float) - 40_000 / 257).max() < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_limits_hold_before_decoding(kind: str) -> None:
    data = written(smooth(), kind)
    with pytest.raises(ImageTooLarge, match="64 x 48"):
        imaging.open_checked(data, 1000)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=pytest.mark.slow if n >= 4 else ()) for n in range(20)]
)
def test_a_damaged_file_is_refused_or_read_and_never_crashes(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(written(smooth(), kind))
    if seed % 2:
        del data[int(rng.integers(8, len(data))) :]
    for at in rng.integers(0, len(data), 5):
        data[at] = int(rng.integers(0, 256))
    try:
        found = decoded(bytes(data))
    except (InvalidImage, ImageTooLarge):
        return
    assert found.image.mode == "RGB"


def test_other_files_of_the_same_container_are_refused() -> None:
    with pytest.raises(InvalidImage):
        decoded(b"\0\0\0\x18ftypisom\0\0\0\0isomiso2" + bytes(100))
    assert not heif.is_heif(b"\0\0\0\x18ftypmp42" + bytes(100))


@pytest.mark.slow
def test_without_its_library_heic_is_refused_with_the_extra_to_install() -> None:
    code = (
        "import sys; sys.modules.update(pi_heif=None, pillow_heif=None)\n"
        "from service.images import imaging\n"
        "imaging.open_checked(sys.stdin.buffer.read(), 10**6)"
    )
    for kind, says in (("HEIF", "pip install '.[heic]'"), ("AVIF", "")):
        data = written(smooth(), kind)
        done = subprocess.run(
            [sys.executable, "-c", code], input=data, capture_output=True, check=False
        )
        assert says in done.stderr.decode()
        assert bool(done.returncode) == (kind == "HEIF")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service that decodes in processes with their limits of memory and time."""
    folder: Path = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    settings = Settings(models=folder, device="cpu", threads=1, decoders=1)
    started = processes.start(1, settings.max_pixels)
    with TestClient(create_app(settings, models.load(settings), processes=started)) as client:
        yield client


@pytest.mark.parametrize(("kind", "media_type"), [("AVIF", "image/avif"), ("HEIF", "image/heic")])
def test_the_service_takes_them(client: TestClient, kind: str, media_type: str) -> None:
    image = Image.fromarray(photo(60, 80) // 128 * 200 + 20)
    answer = client.post(
        "/segment", content=written(image, kind), headers={"Content-Type": media_type}
    )
    assert answer.status_code == 200, answer.text
    found = opened(answer.content)
    assert (found == onnx_models.expected(np.asarray(image))).mean() > 0.95
