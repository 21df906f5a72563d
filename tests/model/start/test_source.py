"""Each tool's files are recognised by what is in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model.data import shapes
from model.data.pairs import DatasetError
from model.start.source import known_set, photos_of, tool
from tests.model.data.exchange import files
from tests.model.data.exchange.test_import import WRITERS


@pytest.mark.parametrize("kind", WRITERS)
def test_files_of_every_tool_are_recognised(kind: str, tmp_path: Path) -> None:
    labels = WRITERS[kind](tmp_path / "labels")
    assert known_set(labels) is None
    assert tool(labels) == kind


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (files.coco_file, "coco"),
        (files.labelme_file, "labelme"),
        (files.labelstudio_file, "labelstudio"),
    ],
)
def test_a_folder_of_a_tools_json_is_recognised(
    make: Callable[[Path], Path], kind: str, tmp_path: Path
) -> None:
    make(tmp_path / "labels" / "a.json")
    assert tool(tmp_path / "labels") == kind


def test_a_data_set_is_used_as_it_is(tmp_path: Path) -> None:
    shapes.make(tmp_path)
    assert known_set(tmp_path) == "folder"


def test_unknown_files_are_named_with_what_is_known(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "a.json", {"hello": 1})
    for source in (path, tmp_path):
        with pytest.raises(DatasetError, match="Label Studio"):
            tool(source)


def test_photos_are_looked_for_beside_the_labels(tmp_path: Path) -> None:
    labels = files.coco_file(tmp_path / "labels" / "a.json")
    with pytest.raises(DatasetError, match="--images DIR"):
        photos_of(labels)
    files.photo(tmp_path / "photos" / "a.jpg")
    assert photos_of(labels) == tmp_path / "photos"


def test_what_macos_and_cameras_add_to_names_is_no_obstacle(tmp_path: Path) -> None:
    """A ._NAME beside each file that was copied, and suffixes in capitals."""
    folder = files.labelme_file(tmp_path / "labels" / "a.json").parent
    (folder / "._a.json").write_bytes(b"\0\5\x16\7")
    (folder / "._a.xml").write_bytes(b"\0\5\x16\7")
    files.photo(folder / "a.JPG")
    assert tool(folder) == "labelme"
    assert photos_of(folder) == folder


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("export.zip", "PK", "export.zip is an archive: unpack it"),
        ("gone.json", None, "does not exist; the path is relative to"),
        ("min.json", '[{"image": "a.jpg", "label": []}]', "Label Studio's JSON-MIN"),
        ("photos/a.jpg", "x", "only 1 pictures: give the file or folder of the labels"),
        ("zips/a.zip", "x", "but an archive: unpack it"),
    ],
)
def test_what_a_newcomer_gives_by_mistake_is_told_with_the_cure(
    name: str, content: str | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    source = path if "/" not in name else path.parent
    with pytest.raises((DatasetError, OSError), match=says):
        tool(source)


def test_a_folder_of_two_tools_is_not_guessed(tmp_path: Path) -> None:
    files.coco_file(tmp_path / "a.json")
    (tmp_path / "annotations.xml").write_text("<annotations/>")
    with pytest.raises(DatasetError, match=r"several tools, annotations\.xml and a\.json"):
        tool(tmp_path)
