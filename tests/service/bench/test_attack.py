"""Ordinary clients get their masks while a running service is attacked."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from service.bench import attack, crafted
from service.bench.attack import Options, Outcome
from tests.service import onnx_models

QUICK = (
    "none",
    "JPEG of 100 scans",
    "PNG of 2,600,000 chunks",
    "EXIF of 3,500,000 rationals",
    "long Accept",
    "header of 1 MB",
    "dripping bodies",
)


@pytest.mark.slow
def test_ordinary_clients_get_their_masks_during_attacks(tmp_path: Path) -> None:
    """Every ordinary photo is answered with 200, within the stated memory, and nothing ends."""
    onnx_models.save(tmp_path / "tiny.onnx")
    outcomes, wrong = attack.run(Options(tmp_path, seconds=1.0, only=QUICK))
    assert wrong == []
    assert [each.name for each in outcomes] == list(QUICK)
    assert all(0 < each.loop_ms <= attack.MOST_LOOP_MS for each in outcomes)
    assert all(each.answers["200"] == 0 for each in outcomes if "scans" in each.name)
    text = attack.table(outcomes).text()
    assert all(name in text for name in QUICK)


def test_each_failure_of_the_service_is_named() -> None:
    """A refused ordinary client, no answer at all and too much memory are problems."""
    sound = Outcome("a", ordinary=Counter({"200": 3}), memory_mib=100)
    refused = Outcome("b", ordinary=Counter({"200": 3, "503": 1}), memory_mib=100)
    silent = Outcome("c", memory_mib=5000)
    deaf = Outcome("d", ordinary=Counter({"200": 3}), loop_ms=500)
    found = list(attack.problems([sound, refused, silent, deaf], Options()))
    assert found == [
        "b: an ordinary client got {'200': 3, '503': 1}",
        "c: an ordinary client got no mask",
        "c: 5000 MiB, more than 4096",
        "d: the event loop was held for 500 ms of its time",
    ]


@pytest.mark.parametrize(
    ("data", "format", "size"),
    [
        (crafted.jpeg_of_scans(50, 64), "JPEG", (64, 64)),
        (crafted.jpeg_of_segments(9), "JPEG", (16, 16)),
        (crafted.bmp_of_runs(100), "BMP", (7000, 700)),
        (crafted.png_of_chunks(9), "PNG", (1, 1)),
        (crafted.png_with_orientations(9), "PNG", (1, 1)),
        (crafted.png_of_one_row(800), "PNG", (800, 1)),
        (crafted.tiff_of_one_tile(64), "TIFF", (1, 1)),
        (crafted.webp_lossless(64), "WEBP", (64, 64)),
        (crafted.noise(64), "JPEG", (64, 64)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_crafted_files_are_what_they_claim(data: bytes, format: str, size: tuple[int, int]) -> None:  # noqa: A002
    """Pillow recognises each format; in another format, the file would attack nothing."""
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == (format, size)
