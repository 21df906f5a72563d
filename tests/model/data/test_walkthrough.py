"""The commands of docs/data.md work as they stand there, on the set that they generate."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import checkpoint
from model.data import shapes
from model.data.dataset import find, read_mask

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
ENDINGS = {
    # Two iterations show that the steps fit together; the documented mIoU takes minutes.
    "model.train": ["--set", "iterations=2", "--set", "batch_size=2", "--workers", "0"],
    "model.evaluate": ["--json", "result.json"],
}


def commands() -> list[tuple[str, list[str]]]:
    """Module and arguments of each command in the section "Try it"."""
    section = DOCS.read_text(encoding="utf-8").partition("## Try it")[2].partition("\n## ")[0]
    lines = re.findall(r"^\$ python -m (\S+) (.*)$", section, re.MULTILINE)
    return [(module, shlex.split(rest, comments=True)) for module, rest in lines]


@pytest.mark.slow
def test_the_walkthrough_trains_and_evaluates_ones_own_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = []
    for module, arguments in commands():
        name = f"{module}.__main__"
        code = importlib.import_module(name).main([*arguments, *ENDINGS.get(module, [])])
        assert code == 0, (module, arguments)
        ran.append(module)
    assert ran == ["model.data", "model.data", "model.train", "model.evaluate"]
    result = json.loads(Path("result.json").read_text())
    assert tuple(result["iou"]) == shapes.CLASSES
    assert result["pixels"] == 8 * 96 * 72
    net = checkpoint.load(Path("runs/shapes/model"))
    assert net.config.num_classes == 4


def test_shapes_are_what_their_masks_say(tmp_path: Path) -> None:
    shapes.make(tmp_path)
    dataset = find("folder", tmp_path, "val")
    assert (dataset.classes, dataset.palette) == (shapes.CLASSES, shapes.PALETTE)
    for pair in dataset.pairs:
        ids = read_mask(pair.mask, classes=4)
        assert set(np.unique(ids)) == {0, 1, 2, 3}
        photo = np.asarray(Image.open(pair.image)).astype(float)
        for label in (1, 2, 3):  # the noise averages out over a shape
            mean = photo[ids == label].mean(0)
            distances = np.abs(np.array(shapes.PALETTE) - mean).sum(1)
            assert distances.argmin() == label
