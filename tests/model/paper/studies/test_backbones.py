"""Table 4 on small sets: photos by class, error rates of each seed, and their comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import pretrain
from model.data.dataset import DatasetError
from model.paper.studies import backbones
from model.paper.studies.__main__ import main
from tests.model import voc_folder

pytestmark = pytest.mark.slow

SETS = ["image_size=33", "batch_size=4", "epochs=1", "depth_multiplier=0.25"]
OVERRIDES = [word for change in SETS for word in ("--set", change)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    voc_folder.make(tmp_path / "data", count=6)
    return voc_folder.make(tmp_path / "data", count=4, split="val")


def test_photos_of_a_single_class_make_a_folder_by_class(tmp_path: Path) -> None:
    """A photo with two classes is left out, and so is a class that only one split has."""
    voc_folder.make(tmp_path / "data", count=8)
    masks = tmp_path / "data" / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    for name, labels in (("2007_000006", (8, 15)), ("2007_000007", (3,))):
        mask = np.zeros((40, 48), np.uint8)
        mask[0, : len(labels)] = labels
        Image.fromarray(mask).save(masks / f"{name}.png")
    voc_folder.make(tmp_path / "data", count=4, split="val")
    folder = backbones.photos_of_voc(tmp_path / "data", tmp_path)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.jpg")}
    assert found == {
        *(f"train/cat/2007_00000{i}.jpg" for i in (0, 2, 4)),
        *(f"train/person/2007_00000{i}.jpg" for i in (1, 3, 5)),
        *(f"val/cat/2007_00000{i}.jpg" for i in (0, 2)),
        *(f"val/person/2007_00000{i}.jpg" for i in (1, 3)),
    }
    assert backbones.photos_of_voc(tmp_path / "gone", tmp_path) == folder  # made once


def test_splits_without_a_common_class_are_an_error(data: Path, tmp_path: Path) -> None:
    masks = data / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    for path in masks.glob("*.png"):
        Image.new("L", (48, 40)).save(path)
    with pytest.raises(DatasetError, match="no class has photos of its own"):
        backbones.photos_of_voc(data, tmp_path)


def test_the_table_is_made_by_one_command_and_resumed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    command = ["backbones", "--data", str(data), "--out", str(out), "--seeds", "0,1", *OVERRIDES]
    assert main([*command, "--backbones", "mobilenet_v2"]) == 0
    table = capsys.readouterr().out
    rates = [
        json.loads((out / f"mobilenet_v2-{seed}" / "backbone.json").read_text())["metrics"]
        for seed in (0, 1)
    ]
    mean = 50 * sum(rate["top1_error"] for rate in rates)
    assert f"| mobilenet_v2 |  | {mean:.2f} (" in table
    assert "top-5" not in table  # two classes
    assert (out / "table4.md").read_text() == table.removesuffix("\n")

    def refuse(_: list[str]) -> int:
        raise AssertionError("trained again")

    monkeypatch.setattr(pretrain, "main", refuse)
    assert main([*command, "--backbones", "mobilenet_v2"]) == 0


def test_the_papers_rows_are_compared_by_default(tmp_path: Path) -> None:
    """A lower error is better; a small difference is hidden by the spread over seeds."""
    settings = backbones.BackboneSettings(tmp_path, tmp_path, (0, 1, 2))
    errors = {"ResNet-101": (0.3, 0.31, 0.32), "Xception-65": (0.2, 0.215, 0.22)}
    for entry in backbones.PAPER:
        for seed in settings.seeds:
            folder = backbones.folder_of(entry, seed, settings)
            folder.mkdir()
            top1 = errors.get(entry.label, (0.3, 0.2, 0.4))[seed]
            metrics = {"top1_error": top1, "top5_error": top1 / 4}
            (folder / "backbone.json").write_text(json.dumps({"metrics": metrics}))
    text = backbones.table(settings)
    assert "| ResNet-101 | 22.40 | 31.00 (30.00 to 32.00) |  |  |" in text
    assert "| Xception-65 | 20.19 | 21.17 (20.00 to 22.00) | +9.83 ± 0.72 | better |" in text
    assert "| Xception-65 without batch norm and ReLU | 20.94 |" in text
    assert text.count("not distinguishable") == 2
    assert "| Xception-65 | 5.17 |" in text


def test_a_set_without_val_has_no_table(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = backbones.entries(["mobilenet_v2"])[0]
    settings = backbones.BackboneSettings(tmp_path, tmp_path, (0,), (entry,))
    folder = backbones.folder_of(entry, 0, settings)
    folder.mkdir()
    (folder / "backbone.json").write_text(json.dumps({"metrics": {}}))
    with pytest.raises(DatasetError, match="so there is no error rate"):
        backbones.table(settings)
    with pytest.raises(SystemExit):
        main(["backbones", "--out", str(tmp_path)])
    assert "give --images DIR" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["backbones", "--data", str(data), "--out", str(tmp_path), "--backbones", "vgg"])
    assert "'vgg' is none of resnet_v1_50_beta" in capsys.readouterr().err
