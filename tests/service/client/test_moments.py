"""Date and place of photos, and the figures that the page shows of them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from service.client.cli import main
from service.client.manifest import FILE_NAME, Manifest
from service.client.moments import UNKNOWN, moment
from service.client.records import ClassPixels, Origin


def taken(path: Path, date: str | None, place: Mapping[int, object] | None = None) -> Path:
    """Write a photo with EXIF data."""
    photo = Image.new("RGB", (8, 8))
    exif = photo.getexif()
    if date is not None:
        exif.get_ifd(0x8769)[0x9003] = date
    if place is not None:
        exif.get_ifd(0x8825).update(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path, exif=exif)
    return path


BERN = {1: "N", 2: (46.0, 57.0, 0.0), 3: "E", 4: (7.0, 27.0, 0.0)}
QUITO = {1: "S", 2: (0.0, 13.0, 12.0), 3: "W", 4: (78.0, 30.0, 36.0)}


def test_date_and_place_are_read(tmp_path: Path) -> None:
    found = moment(str(taken(tmp_path / "bern.jpg", "2024:05:01 10:20:30", BERN)))
    assert found.taken == datetime(2024, 5, 1, 10, 20, 30)
    assert (found.latitude, found.longitude) == pytest.approx((46.95, 7.45))
    quito = moment(str(taken(tmp_path / "quito.jpg", None, QUITO)))
    assert quito.taken is None
    assert (quito.latitude, quito.longitude) == pytest.approx((-0.22, -78.51))


def test_what_is_broken_or_no_file_is_unknown(tmp_path: Path) -> None:
    odd = taken(tmp_path / "odd.jpg", "yesterday", {**BERN, 2: (460.0, 0.0, 0.0)})
    assert moment(str(odd)) == UNKNOWN
    text = tmp_path / "text.jpg"
    text.write_bytes(b"\xff\xd8\xff\xe1\x00\x08Exif\0\0II")
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (text, tmp_path / "pipe.jpg", tmp_path / "none.jpg", tmp_path):
        assert moment(str(path)) == UNKNOWN
    assert moment("photos.tar!a.jpg") == UNKNOWN


def report(folder: Path, photos: Mapping[str, tuple[str | None, int]]) -> Path:
    """The report of photos by name: their dates, and their pixels of cat of 100."""
    out = folder / "out"
    out.mkdir()
    with Manifest(out / FILE_NAME) as manifest:
        for name, (date, cat) in photos.items():
            source = taken(folder / "photos" / name, date, BERN)
            manifest.claim(name, str(source), [name])
            pixels = [ClassPixels(0, "<b>ground", 100 - cat), ClassPixels(8, "cat", cat)]
            manifest.finish(name, Origin(size=1, mtime_ns=1), {}, pixels)
    assert main(["report", str(out)]) == 0
    return out


def heights(svg: str) -> list[int]:
    return [int(tall) for tall in re.findall(r'<rect[^>]* height="(\d+)"', svg)]


def test_page_shows_shares_and_a_timeline(tmp_path: Path) -> None:
    dates = {
        "1.jpg": ("2023:11:30 00:00:00", 5),
        "2.jpg": ("2024:02:01 00:00:00", 5),
        "3.jpg": ("2024:02:29 23:59:59", 100),
        "4.jpg": (None, 0),
    }
    page = (report(tmp_path, dates) / "contact-sheet.html").read_text()
    assert "&lt;b&gt;ground" in page
    row = page.partition("<tr><td>cat")[2].partition("</svg>")[0]
    assert row.startswith('<td class="n">3<td class="n">75 %')
    assert heights(row) == [28, *[0] * 8, 14]
    assert "2 photos: 0 to 10 %" in row
    timeline = page.partition("Photos by date")[2].partition("</svg>")[0]
    assert heights(timeline) == [14, 0, 0, 28]  # November to February
    assert "2024-02: 2 photos" in timeline


def test_a_long_time_is_shown_by_years(tmp_path: Path) -> None:
    dates = {"1.jpg": ("1999:01:01 00:00:00", 1), "2.jpg": ("2009:01:01 00:00:00", 1)}
    page = (report(tmp_path, dates) / "contact-sheet.html").read_text()
    assert len(heights(page.partition("Photos by date")[2].partition("</svg>")[0])) == 11
    assert "1999: 1 photo<" in page


def test_tables_tell_date_and_place(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = report(tmp_path, {"1.jpg": ("2024:05:01 10:20:30", 1), "2.jpg": (None, 2)})
    first, second = parquet.read_table(out / "report.parquet").to_pylist()
    assert first["taken"] == datetime(2024, 5, 1, 10, 20, 30)
    assert (first["latitude"], first["longitude"]) == pytest.approx((46.95, 7.45))
    assert second["taken"] is None
    assert "2024-05-01 10:20:30,46.95,7.45," in (out / "report.csv").read_text()
