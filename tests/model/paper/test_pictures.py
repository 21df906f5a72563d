"""Figures 5b and 6 are drawn from two checkpoints, and show the photos that they claim to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, Pair, voc_palette
from model.paper import pictures
from model.paper.pictures import GAP, TITLE, Judged, main, near_void
from tests.model import voc_folder
from tests.model.nets import tiny

CARD = Card(model=tiny(21).config, classes=VOC_CLASSES, palette=voc_palette(21))


def judged(path: Path, gain: float, miou: float, color: tuple[int, int, int]) -> Judged:
    Image.new("RGB", pictures.CELL, color).save(path)
    labels = np.full(pictures.CELL[::-1], 8, np.uint8)
    return Judged(Pair(path.stem, path, path), labels, labels * 0, labels, gain, miou)


def at(sheet: Image.Image, row: int, column: int) -> tuple[int, ...]:
    """The pixel in the middle of a cell."""
    width, height = pictures.CELL
    x = GAP + column * (width + GAP) + width // 2
    pixel = sheet.getpixel((x, TITLE + GAP + row * (height + GAP) + height // 2))
    assert isinstance(pixel, tuple)
    return pixel


def test_figure_5b_shows_where_the_decoder_gains_most(tmp_path: Path) -> None:
    photos = [
        judged(tmp_path / f"{i}.png", gain, 0.5, (10 * i, 0, 0))
        for i, gain in enumerate((0.1, 0.4, -0.2, 0.3))
    ]
    sheet = pictures.figure_5b(photos, CARD, rows=2)
    assert [at(sheet, row, 0)[0] for row in (0, 1)] == [10, 30]
    cat = voc_palette(21)[8]
    assert [at(sheet, 0, column) for column in (1, 2, 3)] == [cat, (0, 0, 0), cat]


def test_figure_6_ends_with_the_worst_photos(tmp_path: Path) -> None:
    """The others are of the better half."""
    photos = [judged(tmp_path / f"{i}.png", 0, i / 20, (10 * i, 0, 0)) for i in range(20)]
    sheet = pictures.figure_6(photos, CARD, rows=3)
    shown = [[at(sheet, row, column)[0] // 10 for column in (0, 2, 4)] for row in range(3)]
    assert shown[2] == [2, 1, 0]
    assert shown[0][0] == 19
    assert all(index >= 10 for row in shown[:2] for index in row)


def test_the_band_near_void_is_what_counts() -> None:
    """Void pixels do not count, nor do pixels more than three pixels away."""
    truth = np.zeros((1, 12), np.uint8)
    truth[0, 0] = 255
    labels = truth.copy()
    labels[0, 2] = 5  # in the band of pixels 1 to 3
    labels[0, 8] = 5  # outside
    assert near_void(truth, labels) == pytest.approx(2 / 3)
    assert near_void(truth * 0, labels) == 0


@pytest.fixture
def nets(tmp_path: Path) -> tuple[Path, Path]:
    """A network with the decoder and one without."""
    paths = []
    for name, decoder in (("with", True), ("without", False)):
        net = tiny(21, decoder=decoder)
        card = CARD.model_copy(update={"model": net.config})
        paths.append(checkpoint.save(tmp_path / name, net.state_dict(), card).with_suffix(""))
    return paths[0], paths[1]


@pytest.mark.slow
def test_one_command_draws_both(nets: tuple[Path, Path], tmp_path: Path) -> None:
    data = voc_folder.make(tmp_path, count=5, split="val")
    words = [*map(str, nets), "--data", str(data), "-o", str(tmp_path / "out"), "--photos", "4"]
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"figure5b.jpg", "figure6.jpg"}
    with Image.open(tmp_path / "out" / "figure5b.jpg") as sheet:
        assert sheet.width == 4 * (pictures.CELL[0] + GAP) + GAP


def test_checkpoints_in_the_wrong_order_are_refused(
    nets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_it, without = map(str, nets)
    rest = ["--data", str(tmp_path), "-o", str(tmp_path / "out")]
    assert main([without, with_it, *rest]) == 1
    assert "has no decoder: give the one that has it first" in capsys.readouterr().err
    assert main([with_it, with_it, *rest]) == 1
    assert "has the decoder: train one with model.decoder=false" in capsys.readouterr().err
