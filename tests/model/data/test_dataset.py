"""Data sets are found where their publishers put them, and masks are read correctly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.dataset import DatasetError, find, read_mask, voc_palette
from model.data.pairs import write_mask
from tests.model import voc_folder


def test_voc_pairs_are_listed_in_the_order_of_the_split(tmp_path: Path) -> None:
    dataset = find("voc", voc_folder.make(tmp_path), "train")
    assert [pair.name for pair in dataset.pairs] == [f"2007_{index:06}" for index in range(6)]
    assert all(pair.image.is_file() and pair.mask.is_file() for pair in dataset.pairs)
    assert len(dataset.classes) == len(dataset.palette) == 21


@pytest.mark.parametrize("own", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_sets_own_folder_is_accepted_too(tmp_path: Path, own: str) -> None:
    root = voc_folder.make(tmp_path)
    assert find("voc", root / own, "train") == find("voc", root, "train")


def test_the_voc_palette_is_the_published_one() -> None:
    palette = voc_palette(256)
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert palette[15] == (192, 128, 128)  # person
    assert palette[20] == (0, 64, 128)  # tvmonitor
    assert palette[255] == (224, 224, 192)  # void
    assert len(set(palette)) == 256


def test_trainval_is_train_and_val(tmp_path: Path) -> None:
    voc_folder.make(tmp_path, count=2)
    lists = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "val.txt").write_text("2007_000009\n")
    names = [pair.name for pair in find("voc", tmp_path, "trainval").pairs]
    assert names == ["2007_000000", "2007_000001", "2007_000009"]
    (lists / "trainval.txt").write_text("2007_000001\n")  # the publisher's list, if it exists
    assert [pair.name for pair in find("voc", tmp_path, "trainval").pairs] == ["2007_000001"]


def test_camvid_is_listed_by_names_and_by_segnets_own_lines(tmp_path: Path) -> None:
    base = tmp_path / "CamVid"
    for folder in ("train", "trainannot"):
        (base / folder).mkdir(parents=True)
    (base / "train.txt").write_text(
        "/SegNet/CamVid/train/0001TP_1.png /SegNet/CamVid/trainannot/0001TP_1.png\n0001TP_2\n"
    )
    (base / "train" / "0001TP_2.jpg").touch()
    dataset = find("camvid", tmp_path, "train")
    assert [pair.image for pair in dataset.pairs] == [
        base / "train" / "0001TP_1.png",
        base / "train" / "0001TP_2.jpg",
    ]
    assert dataset.pairs[0].mask == base / "trainannot" / "0001TP_1.png"
    assert find("camvid", base, "train") == dataset
    assert (len(dataset.classes), len(dataset.palette), dataset.void) == (11, 11, 11)


def test_a_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"val\.txt does not exist.*\['train'\]"):
        find("voc", voc_folder.make(tmp_path), "val")


def test_a_list_of_file_names_instead_of_stems_is_explained(tmp_path: Path) -> None:
    voc_folder.make(tmp_path)
    lists = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("2007_000000.jpg\n2007_000001.jpg\n")
    with pytest.raises(DatasetError, match="without the suffix, one a line, such as 2007_000000"):
        find("voc", tmp_path, "train")


def test_an_unknown_set_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="voc"):
        find("vok", tmp_path, "train")


def test_ids_that_are_no_class_become_void(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 10, 11, 20, 21, 255]], np.uint8)).save(path)
    assert read_mask(path, classes=21).tolist() == [[0, 10, 11, 20, 255, 255]]
    assert read_mask(path, classes=11, void=11).tolist() == [[0, 10, 255, 255, 255, 255]]


def test_a_mask_of_colours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(DatasetError, match=r"mode RGB.*class ids"):
        read_mask(path, classes=21)


@pytest.mark.parametrize("step", [1, 255])
def test_every_id_survives_being_written(tmp_path: Path, step: int) -> None:
    """Pillow renumbers the values of a palette PNG whose palette is short."""
    ids = np.arange(256, dtype=np.uint8)[None] // step * step
    write_mask(tmp_path / "mask.png", ids, voc_palette(21))
    with Image.open(tmp_path / "mask.png") as mask:
        assert np.array_equal(np.asarray(mask), ids)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"mask\.png cannot be read"):
        read_mask(path, classes=2)
