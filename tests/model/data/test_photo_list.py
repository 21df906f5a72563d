"""Photos without masks: from folders in folders, or from a list."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from model.data.pairs import DatasetError
from model.data.photo_list import find_photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    for name in ("b.jpg", "more/a.PNG", ".hidden.jpg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no photo")
    return tmp_path


def test_a_folder_gives_all_photos_below_it(folder: Path) -> None:
    assert find_photos(folder) == (folder / "b.jpg", folder / "more/a.PNG")


def test_a_list_gives_the_photos_that_it_names(folder: Path) -> None:
    (folder / "list.txt").write_text("more/a.PNG\n\n")
    assert find_photos(folder / "list.txt") == (folder / "more/a.PNG",)


def test_missing_photos_and_empty_folders_are_named(folder: Path) -> None:
    (folder / "list.txt").write_text("nowhere.jpg\n")
    with pytest.raises(DatasetError, match=r"nowhere\.jpg.*list\.txt"):
        find_photos(folder / "list.txt")
    with pytest.raises(DatasetError, match="holds no photo"):
        find_photos(_empty(folder))


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"
