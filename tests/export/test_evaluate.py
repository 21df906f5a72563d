"""Evaluating an exported file gives the checkpoint's figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from export import evaluate as export_evaluate
from export.writer import ExportOptions, export
from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, voc_palette
from model.data.photo import open_photo
from model.evaluate import __main__ as model_evaluate
from model.network.deeplab import DeepLabV3Plus
from service.inference.contract import InputSize
from tests.export.conftest import CONFIG
from tests.model import limits, voc_folder
from tests.service import onnx_models


@pytest.mark.slow
def test_importing_the_service_keeps_the_pixel_limit_of_training(tmp_path: Path) -> None:
    """Pillow still refuses a decompression bomb after `export.evaluate` is imported."""
    assert "service.images.imaging" in sys.modules
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    with pytest.raises(OSError, match="decompression bomb"):
        open_photo(bomb)


@pytest.mark.slow
def test_checkpoint_and_file_have_the_same_miou(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"num_classes": 21})
    card = Card(model=config, classes=VOC_CLASSES, palette=voc_palette(21))
    torch.manual_seed(0)
    net = DeepLabV3Plus(config)
    torch.nn.init.normal_(net.logits.weight)  # far from ties, which rounding would decide
    source = checkpoint.save(tmp_path / "net", net.state_dict(), card)
    target = tmp_path / "net.onnx"
    export(source, target, ExportOptions())
    options = ["--data", str(voc_folder.make(tmp_path, split="val")), "--split", "val"]
    options += ["--trimap", "1,9", "--boundary"]
    results = []
    for main, path in ((model_evaluate.main, source), (export_evaluate.main, target)):
        assert main([str(path), *options, "--json", str(tmp_path / "out.json")]) == 0
        results.append(json.loads((tmp_path / "out.json").read_text()))
    checkpoints, files = results
    assert files["pixels"] == checkpoints["pixels"]
    assert files["miou"] == pytest.approx(checkpoints["miou"], abs=1e-3)
    assert set(files["iou"]) == set(VOC_CLASSES)
    assert files["trimap"] == pytest.approx(checkpoints["trimap"], abs=1e-3)
    assert files["boundary_miou"] == pytest.approx(checkpoints["boundary_miou"], abs=1e-3)


def test_large_photos_are_shrunk_or_cut_into_windows() -> None:
    """A fake model that tells odd from even pixels only works if the photo is not shrunk."""
    target = InputSize(policy="fixed", height=33, width=40, pad=(0, 0, 0))
    image = np.zeros((70, 100, 3), np.uint8)
    image[::2, 1::2] = image[1::2, ::2] = 200
    shapes = set()

    def run(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        shapes.add(images.shape)
        return (images[..., 0] > 150).astype(np.uint8)

    truth = (image[..., 0] > 150).astype(np.uint8)
    sliding = export_evaluate.predict(run, target, image, overlap=0.25)
    np.testing.assert_array_equal(sliding, truth)
    assert not (export_evaluate.predict(run, target, image) == truth).all()
    assert shapes == {(1, 33, 40, 3)}


@pytest.mark.slow
def test_a_data_set_of_other_classes_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc_folder.make(tmp_path, split="val")
    assert export_evaluate.main([str(exported), "--data", str(tmp_path)]) == 1
    assert "5 classes" in capsys.readouterr().err


def test_a_file_that_is_not_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(np.zeros(99, np.uint8).tobytes())
    assert export_evaluate.main([str(path), "--data", str(tmp_path)]) == 1
    assert "x.onnx" in capsys.readouterr().err


def test_an_option_that_does_not_apply_to_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file has one input size, so it cannot take larger photos whole as a checkpoint can."""
    with pytest.raises(SystemExit, match="2"):
        export_evaluate.main(["x.onnx", "--data", str(tmp_path), "--whole"])
    assert "--whole" in capsys.readouterr().err


@limits.needs_linux
def test_running_out_of_memory_names_what_takes_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file whose input has 2.7 GB for each photo."""
    monkeypatch.setattr(onnx_models, "SIZE", (30_000, 30_000))
    monkeypatch.setattr(onnx_models, "CLASSES", VOC_CLASSES)
    monkeypatch.setattr(onnx_models, "PALETTE", voc_palette(len(VOC_CLASSES)))
    file = onnx_models.save(tmp_path / "large.onnx")
    data = voc_folder.make(tmp_path, count=1, split="val")
    with limits.memory_at_most():
        assert export_evaluate.main([str(file), "--data", str(data)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory: export with a smaller --size, or fewer")
