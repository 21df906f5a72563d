"""One temperature makes confidence mean what it says, and changes no label."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, voc_palette
from model.finish import temperature
from model.finish.temperature import LAST, Pixels
from model.network.inference import label_map, probabilities
from tests.model import voc_folder
from tests.model.nets import photo, tiny


def truthful(scale: float, seed: int, count: int = 20_000) -> Pixels:
    """Pixels whose truth is drawn from the softmax of their logits, before these are scaled."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 4))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (rng.random((count, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return Pixels((logits * scale).astype(np.float32), truth)


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_the_logits_were_scaled_by(scale: float) -> None:
    assert temperature.fit(truthful(scale, 0)) == pytest.approx(scale, rel=0.03)


def test_cross_entropy_is_pytorchs() -> None:
    pixels = truthful(1.0, 1, count=50)
    expected = F.cross_entropy(
        torch.from_numpy(pixels.logits) / 2.5, torch.from_numpy(pixels.truth)
    )
    assert temperature.cross_entropy(pixels, 2.5) == pytest.approx(float(expected), rel=1e-5)


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy() -> None:
    """By hand: three pixels 90 % sure, two of them right; one pixel 60 % sure and right."""
    sure, unsure = np.log([0.9, 0.1]), np.log([0.4, 0.6])
    pixels = Pixels(np.array([sure, sure, sure, unsure], np.float32), np.array([0, 0, 1, 1]))
    expected = (3 * abs(0.9 - 2 / 3) + 1 * abs(0.6 - 1)) / 4
    assert temperature.calibration_error(pixels, 1.0) == pytest.approx(expected, rel=1e-5)


def test_errors_are_those_of_photos_that_were_not_fitted() -> None:
    """The first half is too sure and the second is not sure enough: each makes the other worse."""
    photos = [truthful(3.0 if index % 2 == 0 else 0.5, index, 4000) for index in range(4)]
    found = temperature.measured(photos)
    assert found["cross_entropy"] > found["cross_entropy_before"]
    alike = temperature.measured([truthful(3.0, index, 4000) for index in range(4)])
    assert alike["expected_calibration_error"] < 0.02 < alike["expected_calibration_error_before"]


@pytest.mark.slow
def test_the_last_convolution_changes_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tiny(len(VOC_CLASSES))
    card = Card(
        model=net.config,
        classes=VOC_CLASSES,
        palette=voc_palette(len(VOC_CLASSES)),
        metrics={"miou": 0.5},
    )
    checkpoint.save(tmp_path / "net", net.state_dict(), card)
    voc_folder.make(tmp_path / "data")
    arguments = [str(tmp_path / "net"), "-o", str(tmp_path / "out"), "--split", "train"]
    assert temperature.main([*arguments, "--data", str(tmp_path / "data")]) == 0
    found = json.loads(capsys.readouterr().out)
    cooled = checkpoint.load(tmp_path / "out")
    before, after = net.state_dict(), cooled.state_dict()
    for name, tensor in before.items():
        expected = tensor / found["temperature"] if name in LAST else tensor
        torch.testing.assert_close(after[name], expected, msg=name)
    image = photo(50, 60)
    assert np.array_equal(label_map(cooled, image), label_map(net, image))
    logs = np.log(probabilities(net, image)), np.log(probabilities(cooled, image))
    spread = [float((each.max(axis=0) - each.min(axis=0)).mean()) for each in logs]
    assert spread[1] * found["temperature"] == pytest.approx(spread[0], rel=1e-3)
    written = checkpoint.read_card(tmp_path / "out")
    assert written.training["calibrated"] == found
    assert written.metrics == {}


def test_a_set_that_cannot_be_halved_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tiny(len(VOC_CLASSES))
    palette = voc_palette(len(VOC_CLASSES))
    card = Card(model=net.config, classes=VOC_CLASSES, palette=palette)
    checkpoint.save(tmp_path / "net", net.state_dict(), card)
    voc_folder.make(tmp_path / "data")
    listed = next((tmp_path / "data").rglob("ImageSets/Segmentation/train.txt"))
    listed.write_text(listed.read_text().split()[0] + "\n")
    arguments = [str(tmp_path / "net"), "-o", str(tmp_path / "out"), "--split", "train"]
    assert temperature.main([*arguments, "--data", str(tmp_path / "data")]) == 1
    assert "has one photo: give two or more" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
