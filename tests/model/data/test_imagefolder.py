"""Folders of classes are checked before a backbone is pretrained on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.__main__ import main
from model.data.imagefolder import SUFFIXES


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(2):
                Image.fromarray(noise).save(tmp_path / split / label / f"{index}.jpg")
    return tmp_path


def report_of(
    photos: Path, capsys: pytest.CaptureFixture[str], code: int, split: str = "train"
) -> dict[str, object]:
    assert main(["check", str(photos), "--split", split, "--json"]) == code
    return dict(json.loads(capsys.readouterr().out))


def test_valid_folders_are_usable_and_counted(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(photos, capsys, 0)
    assert report["classes"] == {"cat": 2, "dog": 2}
    assert (report["images"], report["modes"], report["verdict"]) == (4, {"RGB": 4}, "usable")
    assert main(["check", str(photos), "--split", "val"]) == 0
    assert "2 classes of 2 to 2 images" in capsys.readouterr().out


def test_truncated_and_empty_files_are_named(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, empty = photos / "train/cat/0.jpg", photos / "train/dog/1.jpg"
    cut.write_bytes(cut.read_bytes()[:-2000])
    empty.write_bytes(b"")
    problems = report_of(photos, capsys, 1)["problems"]
    assert isinstance(problems, list)
    for path, problem in zip((cut, empty), problems, strict=True):
        assert problem.startswith(f"{path} cannot be read")


def test_a_class_without_photos_is_a_problem(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        (photos / split / "eel").mkdir()
    assert report_of(photos, capsys, 1)["problems"] == [f"{photos / 'train/eel'} holds no image"]


def test_splits_of_different_classes_are_a_problem(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ImageFolder numbers folders in their order: dog would be 1 here and 0 there."""
    (photos / "val" / "cat").rename(photos / "val" / "eel")
    assert "different classes: ['cat', 'eel']" in str(report_of(photos, capsys, 1)["problems"])


def test_small_photos_and_other_files_cause_a_warning(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (90, 31)).save(photos / "train/cat/0.jpg")
    (photos / "train/dog/notes.txt").touch()
    assert main(["check", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "warning: 1 images have a side below 32 pixels" in out
    assert "warning: 1 files are no images by their suffix" in out


def test_a_split_without_class_folders_is_refused(tmp_path: Path) -> None:
    assert main(["check", str(tmp_path), "--dataset", "imagefolder"]) == 2
    (tmp_path / "train").mkdir()
    assert main(["check", str(tmp_path), "--dataset", "imagefolder"]) == 2


@pytest.mark.slow
def test_suffixes_are_the_ones_that_training_reads() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(SUFFIXES) == set(IMG_EXTENSIONS)
