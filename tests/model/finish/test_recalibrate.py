"""Batch norm's statistics become those of whole photos; the weights do not change."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, find, voc_palette
from model.finish import recalibrate
from model.network.layers import batch_norms
from tests.model import limits, voc_folder
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


@pytest.mark.slow
def test_statistics_are_those_of_all_photos(source: Path, tmp_path: Path) -> None:
    net = checkpoint.load(source).double()  # in float32 torch's own sums differ by 1e-5
    dataset = find("voc", tmp_path / "data", "train")
    photos = list(recalibrate.whole(dataset, recalibrate.drawn(dataset, "uniform", 4, 3), net))
    after = copy.deepcopy(net)
    recalibrate.recalibrate(after, iter(photos), 4, batch=2)
    assert not any(layer.training for layer in after.modules())

    seen: list[list[torch.Tensor]] = [[] for _ in batch_norms(net)]
    for norm, kept in zip(batch_norms(net), seen, strict=True):
        norm.train().register_forward_hook(lambda _, inputs, __, kept=kept: kept.append(inputs[0]))
    with torch.no_grad():
        net(torch.cat(photos[:2]))
        net(torch.cat(photos[2:]))
    for found, inputs in zip(batch_norms(after), seen, strict=True):
        variance, mean = torch.var_mean(torch.cat(inputs), (0, 2, 3), correction=0)
        torch.testing.assert_close(found.running_mean, mean)
        torch.testing.assert_close(found.running_var, variance)


@pytest.mark.slow
def test_only_statistics_change(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out", "--photos", "2", "--batch", "2") == 0
    before = checkpoint.load(source).state_dict()
    after = checkpoint.load(tmp_path / "out").state_dict()
    changed = {name.rpartition(".")[2] for name in before if not before[name].equal(after[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.slow
def test_uniform_sampling_uses_each_photo_once_before_any_again(
    source: Path, tmp_path: Path
) -> None:
    dataset = find("voc", tmp_path / "data", "train")
    total = len(dataset.pairs)
    order = recalibrate.drawn(dataset, "uniform", total + 1, seed=0)
    assert sorted(order[:total]) == list(range(total))
    assert len(order) == total + 1


@pytest.mark.slow
def test_the_card_says_what_was_done(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out", "--photos", "2", "--batch", "2") == 0
    card = checkpoint.read_card(tmp_path / "out")
    assert card.training["recalibrated"]["photos"] == 2
    assert card.metrics == {}  # the old ones belong to other statistics


@pytest.mark.slow
def test_photos_are_laid_out_as_evaluation_does(source: Path, tmp_path: Path) -> None:
    net = checkpoint.load(source)
    dataset = find("voc", tmp_path / "data", "train")
    for photo in recalibrate.whole(dataset, np.arange(len(dataset.pairs)), net):
        assert photo.shape == (1, 3, 65, 65)


@pytest.mark.parametrize(("photos", "batch"), [("4", "1"), ("5", "2"), ("2", "4")])
def test_photos_that_make_no_whole_batches_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], photos: str, batch: str
) -> None:
    with pytest.raises(SystemExit):
        run(source, tmp_path / "out", "--photos", photos, "--batch", batch)
    assert "a multiple of it" in capsys.readouterr().err


def test_a_missing_split_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "out", "--split", "nowhere") == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.slow
@limits.needs_linux
@pytest.mark.parametrize(
    ("batch", "advice"),
    [
        ("4", "--batch 4: take fewer photos at once; or take a checkpoint of a smaller"),
        ("2", "take a checkpoint of a smaller model.crop_size"),
    ],
)
def test_running_out_of_memory_names_what_takes_less(
    batch: str,
    advice: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Batches of fewer than two photos are refused, so no smaller one is advised."""
    card = checkpoint.read_card(source)
    large = card.model.model_copy(update={"crop_size": (limits.LARGEST, limits.LARGEST)})
    state = checkpoint.load(source).state_dict()
    checkpoint.save(source, state, card.model_copy(update={"model": large}))
    options = ["--photos", batch, "--batch", batch, "--sampling", "uniform"]
    with limits.memory_at_most():
        assert run(source, tmp_path / "out", *options) == 1
    assert capsys.readouterr().err.startswith(f"error: out of memory: {advice}")
    assert not list(tmp_path.glob("out*"))
