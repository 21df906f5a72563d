"""Masks of colours are recognised and translated into class ids; unknown colours are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.data import cityscapes, palettes
from model.data.__main__ import main
from model.data.dataset import VOC_CLASSES, find, read_mask, voc_palette
from tests.model import voc_folder

IDS = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)
COLORS = np.array([(10, 20, 30), (200, 0, 0), (0, 200, 0)], np.uint8)
TOML = """
classes = ["ground", "roof", "tree"]
palette = [[10, 20, 30], [200, 0, 0], [0, 200, 0]]
void_colors = [[255, 255, 255]]
"""


def own(root: Path, *masks: Image.Image, toml: str = TOML) -> Path:
    (root / "dataset.toml").write_text(toml)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for index, mask in enumerate(masks):
        Image.new("RGB", mask.size).save(root / "images" / "train" / f"{index}.jpg")
        mask.save(root / "masks" / "train" / f"{index}.png")
    return root


def painted(ids: NDArray[np.uint8], colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The colours (H, W, 3) of ids (H, W); white for void."""
    out = np.full((*ids.shape, 3), 255, np.uint8)
    for index, color in enumerate(colors):
        out[ids == index] = color
    return out


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_of_the_palette_become_class_ids(tmp_path: Path, mode: str) -> None:
    coloured = Image.fromarray(painted(IDS, COLORS)).convert(mode)
    root = own(tmp_path, coloured, Image.fromarray(IDS))
    assert main(["check", str(root)]) == 1
    assert main(["check", str(root), "--convert", str(root / "ids")]) == 0
    for index in range(2):
        with Image.open(root / "ids" / f"{index}.png") as mask:
            assert mask.mode == "P"
            assert np.array_equal(np.asarray(mask), IDS)
    assert np.array_equal(
        np.asarray(Image.open(root / "ids" / "0.png").convert("RGB"))[IDS != 255],
        painted(IDS, COLORS)[IDS != 255],
    )


def test_colours_that_are_unknown_are_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coloured = painted(IDS, COLORS)
    strange = coloured.copy()
    strange[0, :2] = (9, 9, 9)
    root = own(tmp_path, Image.fromarray(coloured), Image.fromarray(strange))
    assert main(["check", str(root), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["color_masks"] == 2
    assert report["unknown_colors"] == [{"color": [9, 9, 9], "pixels": 2}]
    assert "1 colours are not in palette dataset.toml: (9, 9, 9) in 2" in report["verdict"]

    assert main(["check", str(root), "--convert", str(root / "ids")]) == 1
    assert [path.name for path in (root / "ids").iterdir()] == ["0.png"]
    Image.fromarray(strange).save(root / "masks" / "train" / "0.png")
    assert main(["check", str(root), "--convert", str(root / "ids")]) == 1
    assert not (root / "ids" / "0.png").exists()  # it came from the old mask
    assert f"{root / 'ids' / '1.png'} is missing" in capsys.readouterr().out


def test_values_in_three_equal_channels_are_the_values(tmp_path: Path) -> None:
    toml = 'classes = ["ground", "roof", "tree"]\nvalues = [3, 1, 2]\nvoid = 0\n'
    coloured = Image.fromarray(np.array([[1, 2, 3, 0]], np.uint8)).convert("RGB")
    root = own(tmp_path, coloured, toml=toml)
    assert main(["check", str(root), "--convert", str(root / "ids")]) == 0
    assert read_mask(root / "ids" / "0.png", classes=3).tolist() == [[1, 2, 0, 255]]


def test_black_and_white_palettes_are_not_mistaken_for_renumbered_ones(tmp_path: Path) -> None:
    """The values 0 and 1 are shown as black and white, and white is not void here."""
    mask = Image.fromarray(np.array([[0, 1]], np.uint8))
    mask.putpalette([0, 0, 0, 255, 255, 255])
    toml = 'classes = ["ground", "roof"]\npalette = [[0, 0, 0], [200, 0, 0]]\n'
    assert main(["check", str(own(tmp_path, mask, toml=toml))]) == 0


def test_masks_numbered_from_one_are_not_mistaken_for_renumbered_ones(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[1, 2, 3]], np.uint8))
    mask.putpalette([0, 0, 0, *COLORS.ravel().tolist()])
    assert main(["check", str(own(tmp_path, mask, toml=f"{TOML}values = [1, 2, 3]\n"))]) == 0


def test_cityscapes_colours_are_known_to_a_set_of_nineteen_classes(tmp_path: Path) -> None:
    colors = np.array([*cityscapes.PALETTE, (111, 74, 0)], np.uint8)  # the last one: dynamic
    toml = f"classes = {json.dumps(cityscapes.CLASSES)}"
    root = own(tmp_path, Image.fromarray(colors[None]), toml=toml)
    assert main(["check", str(root), "--convert", str(root / "ids")]) == 0
    with Image.open(root / "ids" / "0.png") as mask:
        assert np.asarray(mask)[0].tolist() == [*range(19), 255]


def test_the_coloured_masks_of_some_copies_of_voc_become_ids(tmp_path: Path) -> None:
    root = voc_folder.make(tmp_path, count=2)
    dataset = find("voc", root, "train")
    wanted = [read_mask(pair.mask, classes=21) for pair in dataset.pairs]
    for pair in dataset.pairs:
        path = Path(str(pair.mask))
        Image.open(path).convert("RGB").save(path)
    out = tmp_path / "ids"
    assert main(["check", str(root), "--convert", str(out)]) == 0
    for pair, ids in zip(dataset.pairs, wanted, strict=True):
        assert np.array_equal(read_mask(out / f"{pair.name}.png", classes=21), ids)


def test_a_renumbered_palette_is_noticed_and_undone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Saving colours as a palette PNG renumbers them: cat becomes class 1 or 2."""
    root = voc_folder.make(tmp_path, count=2)
    assert main(["check", str(root)]) == 0
    masks = [Path(str(pair.mask)) for pair in find("voc", root, "train").pairs]
    wanted = [read_mask(path, classes=21) for path in masks]
    for path in masks:
        Image.open(path).convert("RGB").quantize(4).save(path)
        assert not np.array_equal(read_mask(path, classes=21), wanted[0])
    capsys.readouterr()
    assert main(["check", str(root)]) == 1
    assert "renumbered" in capsys.readouterr().out
    out = tmp_path / "ids"
    assert main(["check", str(root), "--convert", str(out)]) == 0
    for path, ids in zip(masks, wanted, strict=True):
        assert np.array_equal(read_mask(out / path.name, classes=21), ids)


def test_masks_are_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = own(tmp_path, Image.fromarray(painted(IDS, COLORS)))
    assert main(["check", str(root), "--convert", str(root / "masks" / "train")]) == 2
    assert "would overwrite" in capsys.readouterr().err


def test_colours_are_packed_and_unpacked_without_loss() -> None:
    for color in [*voc_palette(len(VOC_CLASSES)), (255, 255, 255), (1, 2, 3)]:
        assert palettes.unpack(palettes.pack(color)) == color
    picture = Image.fromarray(np.array([[[1, 2, 3], [255, 0, 254]]], np.uint8))
    packed = palettes.packed_pixels(picture)
    assert [palettes.unpack(int(n)) for n in packed[0]] == [(1, 2, 3), (255, 0, 254)]
