"""The language of `report --where`, and photos chosen and copied by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.client.cli import main
from service.client.errors import UsageError
from service.client.manifest import FILE_NAME, Manifest
from service.client.records import ClassPixels, Origin
from service.client.where import parse

NAMES = ["background", "cat", "dining table", "and"]
VALUES = {"background": 0.7, "cat": 0.2, "dining table": 0.1, "and": 0.0, "confidence": 0.8}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat > 0.05", True),
        ("cat>20%", False),
        ('CAT >= 20% and "dining table" > 0', True),
        ("cat > 50% or background > .5 and confidence < 0.5", False),  # `and` binds more
        ("(cat > 50% or background > .5) and not confidence < 0.5", True),
        ("not not cat = 0.2", True),
        ('"and" != 0', False),
        ("confidence <= 80%", True),
        ("cat > 1e-3", True),
        ("cat > 2.5E-1 or cat < .1e+1%", False),
    ],
)
def test_an_expression_means_what_it_says(text: str, expected: bool) -> None:
    assert parse(text, NAMES)(VALUES) is expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "cat", "cat >", "cat > cat", "dog > 1", "cat > 2", "cat > 101%", "cat > 0.1 cat > 0"),
        *(
            "(cat > 0",
            "cat > 0)",
            "cat > -1",
            "cat > 1e",
            "cat > 1e9",
            "and > 0",
            '"cat > 0',
            "cat ~ 0",
        ),
        *("__import__('os').system('true') > 0", "not " * 60 + "cat > 0", "(" * 60 + "cat > 0"),
        "cat > 0 or " * 500 + "cat > 0",
    ],
)
def test_what_cannot_be_read_is_refused_with_the_names(text: str) -> None:
    with pytest.raises(UsageError, match="--where"):
        parse(text, NAMES)


def test_an_unknown_confidence_passes_no_comparison() -> None:
    values = {name: share for name, share in VALUES.items() if name != "confidence"}
    assert not parse("confidence > 0", NAMES)(values)
    assert not parse("confidence <= 1", NAMES)(values)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three photos: one with a cat, one without, and one with a cat that is gone."""
    out = tmp_path / "out"
    out.mkdir()
    with Manifest(out / FILE_NAME) as manifest:
        for name, cat in (("a/cat.jpg", 30), ("none.jpg", 0), ("gone.jpg", 30)):
            source = tmp_path / "photos" / name
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_bytes(name.encode())
            manifest.claim(name, str(source), [name])
            pixels = [ClassPixels(0, "background", 70), ClassPixels(8, "cat", cat)]
            manifest.finish(name, Origin(size=1, mtime_ns=1), {}, pixels)
        source.unlink()
    return out


def test_chosen_photos_are_printed_by_their_paths(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(results), "--where", "cat > 0.1"]) == 0
    photos = tmp_path / "photos"
    assert capsys.readouterr().out.splitlines() == [
        str(photos / "a/cat.jpg"),
        str(photos / "gone.jpg"),
    ]
    assert not (results / "report.csv").exists()


def test_chosen_photos_are_copied_and_missing_ones_are_told(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "cats"
    command = ["report", str(results), "--where", "cat > 10%", "--copy", str(copy), "--json"]
    assert main(command) == 1
    found = json.loads(capsys.readouterr().out)
    assert [each["photo"] for each in found["photos"]] == ["a/cat.jpg", "gone.jpg"]
    assert len(found["not_copied"]) == 1
    assert "gone.jpg" in found["not_copied"][0]
    copies = [path.relative_to(copy) for path in copy.rglob("*") if path.is_file()]
    assert copies == [Path("a/cat.jpg")]
    assert (copy / "a/cat.jpg").read_bytes() == b"a/cat.jpg"


def test_another_file_of_the_same_name_is_not_replaced(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "cats"
    (copy / "a").mkdir(parents=True)
    (copy / "a/cat.jpg").write_bytes(b"mine")
    command = ["report", str(results), "--where", "cat > 10%", "--copy", str(copy), "--json"]
    assert main(command) == 1
    assert (copy / "a/cat.jpg").read_bytes() == b"mine"
    found = json.loads(capsys.readouterr().out)
    assert any("another file of this name" in reason for reason in found["not_copied"])


def test_a_photo_copied_onto_itself_stays(results: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    main(["report", str(results), "--where", "cat = 0", "--copy", str(photos)])
    assert (photos / "none.jpg").read_bytes() == b"none.jpg"


def test_copy_without_where_and_bad_expressions_are_wrong_usage(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(results), "--copy", str(tmp_path)]) == 2
    assert main(["report", str(results), "--where", "dog > 0"]) == 2
    assert "background, cat" in capsys.readouterr().err
