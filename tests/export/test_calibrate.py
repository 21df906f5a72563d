"""Thresholds equal those of loops over pixels; the file's probabilities equal PyTorch's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export import calibrate
from export.calibrate import PhotoCounts, best_f1, f1_at, measured, missed, proven_f1
from export.writer import ExportOptions, export
from model import checkpoint
from model.data.dataset import VOC_CLASSES, Dataset, voc_palette
from postprocess.grid import Grid, least_for, sets, top
from service.inference.contract import Calibration
from service.inference.engine import Engine, EngineOptions
from tests.export.conftest import PHASED_SIZE, SIZE
from tests.model import voc_folder
from tests.service import onnx_models


def random_grid(seed: int = 0) -> Grid:
    values = np.random.default_rng(seed).integers(0, 256, (5, 4, 6)).astype(np.uint8)
    return Grid(values, (1.0, 1.5), (2.0, 3.0))


def test_the_share_of_missed_labels_equals_a_loop_over_grid_points() -> None:
    grid = random_grid()
    truth = np.random.default_rng(1).integers(0, 6, (13, 14)).astype(np.uint8)  # 5: void
    curve = missed(grid, truth)
    assert curve is not None
    for least in (0, 1, 60, 128, 255):
        misses = points = 0
        likely = np.unpackbits(sets(grid.values, least), axis=0, count=5, bitorder="little")
        for row in range(4):
            for column in range(6):
                x, y = grid.transform @ (column, row, 1)
                label = truth[int(y), int(x)]
                if label < 5:
                    points += 1
                    misses += not likely[label, row, column]
        assert curve[least] == pytest.approx(misses / points)
    assert missed(grid, np.full((13, 14), 255, np.uint8)) is None


def test_sets_contain_the_truth_as_often_as_promised_on_other_photos() -> None:
    """On average over calibrations, the truth is in the sets as often as promised, or more."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):  # photos differ: some are hard
        hard = rng.uniform(0.2, 3, 41)
        curves = [np.minimum(1, each * np.linspace(0, 1, 256) ** 2) for each in hard]
        mean = tuple(np.mean(curves[:40], axis=0).tolist())
        least = least_for(0.9, mean, 40)
        assert least is not None
        shares.append(1 - curves[40][least])
    assert 0.89 < np.mean(shares) < 0.95
    assert least_for(0.99, tuple([0.0] * 256), 40) is None  # too few photos for this guarantee


def test_the_best_threshold_is_the_one_with_the_best_f1() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.integers(0, 9, (3, 256))
    photo = PhotoCounts(
        predicted,
        np.minimum(predicted, rng.integers(0, 9, (3, 256))),
        np.array([900, 700, 0]),
        None,
    )
    thresholds, f1, before = best_f1([photo])
    for label in range(3):
        tried = [
            2
            * photo.right[label, t:].sum()
            / max(1, predicted[label, t:].sum() + photo.true[label])
            for t in range(256)
        ]
        assert f1[label] == pytest.approx(max(tried))
        assert before[label] == pytest.approx(tried[0])
        assert tried[round(thresholds[label] * 255)] == pytest.approx(max(tried))


def photo_of(unsure: int, sure: int, right: int) -> PhotoCounts:
    """Pixels of class 1 with confidence 50 and 200; the sure ones are right, and `right` others."""
    predicted, correct = np.zeros((2, 2, 256), np.int64)
    predicted[1, [50, 200]] = unsure, sure
    correct[1, [50, 200]] = right, sure
    return PhotoCounts(predicted, correct, np.array([0, sure + right]), None)


def test_a_threshold_that_one_photo_asks_for_is_not_kept() -> None:
    """Seven photos need no threshold; the eighth has so many wrong pixels that all together do."""
    good, bad = photo_of(100, 100, 90), photo_of(2000, 0, 0)
    assert best_f1([*[good] * 7, bad])[0][1] > 50 / 255
    assert proven_f1([*[good] * 7, bad])[1] == 0
    always = photo_of(100, 100, 10)  # unsure pixels are wrong in every photo
    assert 50 / 255 < proven_f1([always] * 8)[1] <= 200 / 255
    assert proven_f1([always]) == [0, 0]  # nothing to prove it on


def test_photos_without_a_class_leave_the_figures_out() -> None:
    """Each half of the photos judges the other; here one half is all void."""
    whole = photo_of(4, 9, 9)
    void = PhotoCounts(whole.predicted * 0, whole.right * 0, whole.true * 0, None)
    data = Dataset("voc", "val", (), ("a", "b"), ((0, 0, 0), (9, 9, 9)))
    assert measured([void, void], data) == {
        "coverage": {},
        "mean_f1": None,
        "mean_f1_at_best": None,
    }
    half = measured([whole, void], data)
    assert half["mean_f1"] is not None
    assert math.isfinite(half["mean_f1"])


def test_one_photo_is_refused_before_the_file_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_models, "CLASSES", VOC_CLASSES)
    monkeypatch.setattr(onnx_models, "PALETTE", voc_palette(len(VOC_CLASSES)))
    file = onnx_models.save(tmp_path / "tiny.onnx", confidence=True)
    before = file.read_bytes()
    data = voc_folder.make(tmp_path, count=3, split="val")
    assert calibrate.main([str(file), "--data", str(data), "--photos", "1"]) == 1
    assert "one photo is too few" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_f1_is_that_of_the_pixels_that_are_kept() -> None:
    photos = [photo_of(100, 40, 30), photo_of(10, 5, 0)]
    for threshold, hits, kept in ((0.0, 75, 155), (0.5, 45, 45), (0.9, 0, 0)):
        assert f1_at(photos, [0, threshold])[1] == pytest.approx(2 * hits / (kept + 75))


def test_the_most_probable_classes_come_first() -> None:
    values = random_grid(3).values
    classes, chances = top(values, 2)
    for row in range(4):
        for column in range(6):
            order = sorted(range(5), key=lambda label: (-int(values[label, row, column]), label))
            assert classes[:, row, column].tolist() == order[:2]
            assert chances[:, row, column].tolist() == values[order[:2], row, column].tolist()


def test_grid_points_lie_where_the_network_computed_them() -> None:
    """Logits of 65 pixels with aligned corners are 4 pixels apart; the photo was halved."""
    values = np.zeros((2, 17, 17), np.uint8)
    grid = Grid.of(values, "corners", (65, 65), (65, 33), (66, 130))
    assert grid.transform.tolist() == [[8, 0, 1], [0, 8, 1]]
    assert grid.values.shape == (2, 17, 9)
    blocks = Grid.of(values[:, :16, :16], "centres", (64, 64), (64, 30), (30, 64))
    assert blocks.transform.tolist() == [[4, 0, 2], [0, 4, 2]]
    assert blocks.values.shape == (2, 16, 7)


@pytest.mark.slow
@pytest.mark.parametrize("size", [SIZE, PHASED_SIZE])
@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.25)])
def test_probabilities_are_those_of_the_network(
    tiny: Path, tmp_path: Path, size: tuple[int, int], scales: tuple[float, ...]
) -> None:
    options = ExportOptions(size=size, scales=scales, confidence=True, probabilities=True)
    contract = export(tiny, tmp_path / "tiny.onnx", options)
    assert contract.probability_grid == "corners"
    engine = Engine(tmp_path / "tiny.onnx", EngineOptions("cpu", threads=1))
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    plain, sure, full = (
        engine.predict(images, extras) for extras in ("labels", "confidence", "probabilities")
    )
    assert all(each.confidence is None and each.probabilities is None for each in plain)
    assert all(each.confidence is not None and each.probabilities is None for each in sure)
    net = checkpoint.load(tiny)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    for index, each in enumerate(full):
        assert (each.labels == plain[index].labels).all()
        assert each.probabilities is not None
        assert each.probabilities.shape == (5, 17, 25 if size == PHASED_SIZE else 24)
        assert abs(each.probabilities.sum(axis=0, dtype=int) - 255).max() <= 3
        if scales == (1.0,):
            with torch.inference_mode():
                exact = F.softmax(net(x[index][None]), dim=1)[0].numpy()
            assert np.abs(each.probabilities / 255 - exact).max() < 0.01


def test_a_contract_needs_a_threshold_for_each_class() -> None:
    from tests.service import onnx_models

    found = Calibration(dataset="voc", split="val", images=3, best_f1=(0.1, 0.2))
    with pytest.raises(ValueError, match="3 classes but 2 thresholds"):
        onnx_models.contract(calibration=found)
