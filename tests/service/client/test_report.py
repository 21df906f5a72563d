from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from service.client.cli import main
from service.client.manifest import FILE_NAME, Manifest
from service.client.records import ClassPixels, Origin
from service.client.report import columns, write_html, write_png

from .flaky_server import FlakyServer

ORIGIN = Origin(size=1, mtime_ns=1, model="light", model_digest="d1")
CLASSES = ["background", "aeroplane", *"cdefgh", "cat", *"jkl", "dog"]
CAT, DOG = ClassPixels(8, "cat", 30), ClassPixels(12, "dog", 5)
BACKGROUND = ClassPixels(0, "background", 70)


class Links(HTMLParser):
    """The pictures that a page shows."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [unquote(value or "") for name, value in attrs if name == "src"]


def red(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (255, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def filled(out: Path, photos: dict[str, list[ClassPixels]]) -> Manifest:
    """A folder of results in which every overlay is red."""
    manifest = Manifest(out / FILE_NAME)
    for name, pixels in photos.items():
        stem = name.removesuffix(".jpg")
        manifest.claim(name, f"/{name}", [stem])
        picture = out / f"{stem}.overlay.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(red((40, 20)))
        manifest.finish(
            name, ORIGIN, {f"{stem}.overlay.png": picture.stat().st_size}, pixels or None
        )
    return manifest


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "report.csv").read_text().splitlines()))


def test_table_has_a_row_per_photo_and_a_column_per_class_of_the_model(tmp_path: Path) -> None:
    """A class that a photo lacks has 0 pixels. A photo that was not counted has empty cells."""
    photos = {"a/1.jpg": [BACKGROUND, CAT], "2.jpg": [DOG, BACKGROUND]}
    with filled(tmp_path, photos) as manifest:
        manifest.set_classes(CLASSES)
        manifest.claim("3.jpg", "/3.jpg", ["3"])
        manifest.fail("3.jpg", ORIGIN, "400 invalid-image: no", rejected=True)
        manifest.claim("4.jpg", "/4.jpg", ["4"])
        manifest.finish("4.jpg", ORIGIN, {}, None)
    assert main(["report", str(tmp_path)]) == 0
    head = ["photo", "status", "error", "model", "model_digest", "confidence", "pixels"]
    found = rows(tmp_path)
    rest = ["regions", "taken", "latitude", "longitude", *CLASSES]
    assert list(found[0]) == [*head, *rest, *(f"{name}_regions" for name in CLASSES)]
    shown = (*head, "background", "cat", "dog", "aeroplane")
    assert [[row[name] for name in shown] for row in found] == [
        ["2.jpg", "done", "", "light", "d1", "", "75", "70", "0", "5", "0"],
        ["3.jpg", "rejected", "400 invalid-image: no", "light", "d1", *[""] * 6],
        ["4.jpg", "done", "", "light", "d1", *[""] * 6],
        ["a/1.jpg", "done", "", "light", "d1", "", "100", "70", "30", "0", "0"],
    ]


def test_tables_of_two_runs_of_one_model_have_the_same_columns(tmp_path: Path) -> None:
    heads = []
    for number, pixels in enumerate([[CAT], [DOG, BACKGROUND]]):
        (tmp_path / str(number)).mkdir()
        with filled(tmp_path / str(number), {"1.jpg": pixels}) as manifest:
            manifest.set_classes(CLASSES)
        main(["report", str(tmp_path / str(number))])
        heads.append((tmp_path / str(number) / "report.csv").read_text().partition("\n")[0])
    assert heads[0] == heads[1]


def test_confidence_is_the_mean_over_all_pixels(tmp_path: Path) -> None:
    sure = [ClassPixels(0, "background", 75, 0.9), ClassPixels(8, "cat", 25, 0.5)]
    with filled(tmp_path, {"1.jpg": sure}):
        pass
    main(["report", str(tmp_path)])
    assert rows(tmp_path)[0]["confidence"] == "0.8"


def test_regions_are_counted_by_class_and_in_all(tmp_path: Path) -> None:
    """For results of an earlier version the number is unknown, which is not 0."""
    counted = [ClassPixels(0, "background", 75, None, 2), ClassPixels(8, "cat", 25, None, 3)]
    photos = {"1.jpg": counted, "2.jpg": [ClassPixels(0, "background", 100, None, 1)]}
    with filled(tmp_path, photos | {"3.jpg": [BACKGROUND]}):
        pass
    main(["report", str(tmp_path)])
    columns = ("regions", "background_regions", "cat_regions")
    assert [[row[name] for name in columns] for row in rows(tmp_path)] == [
        ["5", "2", "3"],
        ["1", "1", "0"],
        ["", "", ""],
    ]
    assert "cat 25 % in 3 regions" in (tmp_path / "contact-sheet.html").read_text()


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    cats = ClassPixels(8, "cat", 30, 0.5, 4)
    with filled(tmp_path, {"1.jpg": [BACKGROUND, cats], "2.jpg": [DOG]}) as manifest:
        manifest.claim("3.jpg", "/3.jpg", ["3"])
        manifest.fail("3.jpg", ORIGIN, "no", rejected=False)
    main(["report", str(tmp_path)])
    table = parquet.read_table(tmp_path / "report.parquet")
    assert str(table.schema.field("cat").type) == "int64"
    assert [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in table.to_pylist()
    ] == rows(tmp_path)


def test_classes_of_one_name_keep_columns_of_their_own(tmp_path: Path) -> None:
    names = {1: "void", 2: "void", 3: "photo", 4: "pixels", 5: "cat", 6: "cat_regions"}
    photos = {"1.jpg": [ClassPixels(number, name, 1) for number, name in names.items()]}
    with filled(tmp_path, photos) as manifest:
        own = {1: "void_1", 2: "void_2", 3: "photo_3", 4: "pixels_4", 5: "cat_5"}
        own |= {6: "cat_regions_6"}
        assert columns(manifest) == own


def test_page_links_every_overlay_relatively(tmp_path: Path) -> None:
    photos = {"a/1.jpg": [BACKGROUND, CAT], "<b>&#%?.jpg": []}
    with filled(tmp_path, photos) as manifest:
        page = write_html(tmp_path, manifest)
    sources = Links(page).sources
    assert len(sources) == 2
    assert all((tmp_path / source).is_file() for source in sources)
    assert "background 70 %, cat 30 %" in page.read_text()
    assert "<b>" not in page.read_text()


def test_sheet_shows_an_even_sample(tmp_path: Path) -> None:
    with filled(tmp_path, {f"{n:03}.jpg": [] for n in range(101)}) as manifest:
        sheet = write_png(tmp_path, manifest)
    assert sheet is not None
    with Image.open(sheet) as image:
        assert image.size == (10 * 168 + 8, 6 * 168 + 8)  # every second of 101: 51 pictures
        assert image.convert("RGB").getpixel((20, 12)) == (255, 0, 0)


def test_picture_that_was_deleted_leaves_a_gap(tmp_path: Path) -> None:
    with filled(tmp_path, {"1.jpg": [], "2.jpg": []}) as manifest:
        (tmp_path / "1.overlay.png").unlink()
        sheet = write_png(tmp_path, manifest)
    assert sheet is not None
    with Image.open(sheet) as image:
        assert image.convert("RGB").getpixel((20, 12)) == (17, 17, 17)
        assert image.convert("RGB").getpixel((188, 12)) == (255, 0, 0)


def test_run_with_report_counts_pixels_and_keeps_no_json(
    server: FlakyServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [server.url, str(photos), "-o", str(out), "--output", "mask"]
    assert main(command) == 0
    assert not (out / "report.csv").exists()
    capsys.readouterr()
    assert (
        main([*command, "--report", "--json"]) == 0
    )  # sent again, because no pixel counts are known yet
    summary = json.loads(capsys.readouterr().out)
    assert summary["sent"] == 3
    assert summary["classes"][1] == {"id": 8, "name": "cat", "pixels": 30, "photos": 3}
    assert "trip/dog.png,done,,light,d1,,40,,,,,30,0,10,,,\n" in (out / "report.csv").read_text()
    assert not list(out.rglob("*.json"))
    assert main([*command, "--report"]) == 0
    assert len(server.segmented()) == 6


def test_report_without_pixels_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with filled(tmp_path, {"1.jpg": []}):
        pass
    assert main(["report", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [Path(file).name for file in report["files"]] == [
        "contact-sheet.html",
        "report.csv",
        "report.parquet",
        "contact-sheet.png",
    ]
    assert "--report" in report["missing"][0]
