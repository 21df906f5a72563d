"""Batch norm's statistics become those of whole photos; weights stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model import checkpoint, recalibrate
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, find, voc_palette
from model.layers import batch_norms
from tests.model import voc_folder
from tests.model.nets import shake, tiny


@pytest.fixture
def source(tmp_path: Path) -> Path:
    net = tiny(len(VOC_CLASSES), crop_size=(65, 65))
    shake(net, 0)
    palette = voc_palette(len(VOC_CLASSES))
    card = Card(model=net.config, classes=VOC_CLASSES, palette=palette, metrics={"miou": 0.5})
    checkpoint.save(tmp_path / "net", net.state_dict(), card)
    voc_folder.make(tmp_path / "data")
    return tmp_path / "net"


def run(source: Path, out: Path, *more: str) -> int:
    data = ["--data", str(source.parent / "data"), "--split", "train", "--device", "cpu"]
    return recalibrate.main([str(source), "-o", str(out), *data, *more])


def test_statistics_are_the_mean_over_batches_and_weights_stay(
    source: Path, tmp_path: Path
) -> None:
    more = ("--photos", "4", "--batch", "2", "--sampling", "uniform", "--seed", "3")
    assert run(source, tmp_path / "out", *more) == 0
    net = checkpoint.load(source)
    dataset = find("voc", tmp_path / "data", "train")
    order = recalibrate.drawn(dataset, "uniform", 4, seed=3)
    photos = list(recalibrate.whole(dataset, order, net))
    first = next(batch_norms(net))
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        for start in (0, 2):
            net(torch.cat(photos[start : start + 2]))
    after = checkpoint.load(tmp_path / "out")
    found = next(batch_norms(after))
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(found.running_mean, mean)
    torch.testing.assert_close(found.running_var, variance)
    for (name, old), new in zip(net.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new), name


def test_uniformly_each_photo_comes_once_before_any_again(source: Path, tmp_path: Path) -> None:
    dataset = find("voc", tmp_path / "data", "train")
    total = len(dataset.pairs)
    order = recalibrate.drawn(dataset, "uniform", total + 1, seed=0)
    assert sorted(order[:total]) == list(range(total))
    assert len(order) == total + 1


def test_the_card_says_what_was_done(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out", "--photos", "2", "--batch", "2") == 0
    card = checkpoint.read_card(tmp_path / "out")
    assert card.training["recalibrated"]["photos"] == 2
    assert card.metrics == {}  # those of other statistics


def test_photos_are_laid_out_as_evaluation_does(source: Path, tmp_path: Path) -> None:
    net = checkpoint.load(source)
    dataset = find("voc", tmp_path / "data", "train")
    for photo in recalibrate.whole(dataset, np.arange(len(dataset.pairs)), net):
        assert photo.shape == (1, 3, 65, 65)


def test_a_batch_of_one_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(source, tmp_path / "out", "--batch", "1")


def test_a_missing_split_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "out", "--split", "nowhere") == 1
    assert "nowhere" in capsys.readouterr().err
