"""Cityscapes: the official table, and masks of label ids read as train ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.__main__ import main
from model.data.cityscapes import CLASSES, LABEL_IDS, LABELS, PALETTE
from model.data.dataset import DatasetError, find, read_mask


def add(root: Path, split: str, kind: str, ids: list[int], file: str = "labelIds") -> None:
    """One photo of `split` with one row of mask values, where the publisher would put it."""
    city, name = "aachen", f"aachen_000000_{len(ids):06}"
    mask = np.array([ids], np.uint8)
    for folder, ending, picture in (
        ("leftImg8bit", "leftImg8bit", Image.new("RGB", (len(ids), 1))),
        (kind, f"{kind}_{file}", Image.fromarray(mask)),
    ):
        path = root / folder / split / city / f"{name}_{ending}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def test_label_ids_are_read_as_train_ids(tmp_path: Path) -> None:
    add(tmp_path / "cityscapes", "train", "gtFine", [*range(34), 255])
    dataset = find("cityscapes", tmp_path, "train")
    assert (dataset.pairs[0].name, len(dataset.classes)) == ("aachen_000000_000035", 19)
    ids = read_mask(dataset.pairs[0].mask, classes=len(dataset.classes), void=dataset.void)
    assert ids[0].tolist() == [*(label.train_id for label in LABELS), 255]


def test_masks_of_train_ids_are_used_if_there_are_no_others(tmp_path: Path) -> None:
    add(tmp_path, "val", "gtFine", [*range(19), 255], file="labelTrainIds")
    pair = find("cityscapes", tmp_path, "val").pairs[0]
    assert read_mask(pair.mask, classes=19)[0].tolist() == [*range(19), 255]


def test_splits_join_fine_and_coarse_masks_as_the_reference_does(tmp_path: Path) -> None:
    for split, kind, width in (
        ("train", "gtFine", 2), ("val", "gtFine", 3), ("train_extra", "gtCoarse", 4)
    ):  # fmt: skip
        add(tmp_path, split, kind, [7] * width)
    add(tmp_path, "train", "gtCoarse", [7] * 2)  # the fine mask of this photo is the better one
    names = {
        split: [
            str(pair.mask).rpartition("/")[2] for pair in find("cityscapes", tmp_path, split).pairs
        ]
        for split in ("trainval", "train_extra", "train_coarse", "trainval_coarse")
    }
    fine, val, coarse = (
        f"aachen_000000_00000{n}_{kind}_labelIds.png"
        for n, kind in ((2, "gtFine"), (3, "gtFine"), (4, "gtCoarse"))
    )
    assert names == {
        "trainval": [fine, val],
        "train_extra": [coarse],
        "train_coarse": [fine, coarse],
        "trainval_coarse": [fine, val, coarse],
    }


def test_photos_are_listed_without_masks_for_a_submission(tmp_path: Path) -> None:
    add(tmp_path, "test", "gtFine", [0])
    pair = find("cityscapes", tmp_path, "test").pairs[0]
    Path(str(pair.mask)).unlink()
    assert find("cityscapes", tmp_path, "test").pairs == (pair,)


@pytest.mark.parametrize(
    ("split", "says"), [("fine", "choose one of train, val"), ("val", "prepare cityscapes")]
)
def test_missing_files_are_reported(tmp_path: Path, split: str, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        find("cityscapes", tmp_path, split)


def test_check_counts_train_ids_and_names_unknown_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(tmp_path, "train", "gtFine", [7, 7, 26, 0])
    assert main(["check", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["classes"]["road"] == {"share": 0.5, "images": 1}
    assert (report["void_share"], report["stray_ids"]) == (0.25, [])
    add(tmp_path, "train", "gtFine", [7, 40])
    assert main(["check", str(tmp_path)]) == 1
    assert "no class: [40]" in capsys.readouterr().out


@pytest.mark.slow
def test_the_label_table_is_the_official_one() -> None:
    from torchvision.datasets import Cityscapes

    official = {row.id: row for row in Cityscapes.classes if row.id >= 0}
    assert [label.id for label in LABELS] == sorted(official)
    for label in LABELS:
        row = official[label.id]
        assert (label.name, label.color) == (row.name, row.color)
        assert label.train_id == row.train_id


def test_train_ids_are_converted_back_to_label_ids() -> None:
    by_train_id = {label.train_id: label for label in LABELS if label.train_id != 255}
    assert sorted(by_train_id) == list(range(19))
    for train_id in range(19):
        label = by_train_id[train_id]
        assert (CLASSES[train_id], PALETTE[train_id]) == (label.name, label.color)
        assert LABEL_IDS[train_id] == label.id
