"""Means of checkpoints, and checkpoints of half the size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.checkpoint import Card
from model.finish import average
from model.network.deeplab import DeepLabV3Plus
from tests.model.nets import shake, tiny


def write(path: Path, seed: int, *, classes: int = 5) -> DeepLabV3Plus:
    """A checkpoint with random weights, and its network."""
    net = tiny(classes)
    shake(net, seed)
    names = tuple(f"class {index}" for index in range(classes))
    palette = tuple((index, 0, 0) for index in range(classes))
    checkpoint.save(path, net.state_dict(), Card(model=net.config, classes=names, palette=palette))
    return net


@pytest.mark.slow
def test_the_mean_lies_between_the_checkpoints(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1)
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "mean")]
    assert average.main(arguments) == 0
    mean, other = checkpoint.load(tmp_path / "mean").state_dict(), b.state_dict()
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(mean[name], (tensor + other[name]) / 2, check_dtype=False)
    card = checkpoint.read_card(tmp_path / "mean")
    assert card.classes == checkpoint.read_card(tmp_path / "a").classes
    assert len(card.training["mean_of"]) == 2


@pytest.mark.slow
def test_a_file_of_half_the_size_predicts_the_same(tmp_path: Path) -> None:
    net = write(tmp_path / "a", 0)
    assert average.main([str(tmp_path / "a"), "-o", str(tmp_path / "half"), "--half"]) == 0
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("a", "half")]
    assert sizes[1] < 0.75 * sizes[0]  # the rest is batch norm, a large part of so thin a network
    half = checkpoint.load(tmp_path / "half")
    assert all(p.dtype == torch.float32 for p in half.parameters())
    image = torch.rand(1, 3, 65, 65) * 255
    with torch.inference_mode():
        expected, logits = net(image), half(image)
    assert (expected - logits).abs().max() < 0.02 * expected.std()


@pytest.mark.slow
def test_kernels_beyond_float16_are_refused(tmp_path: Path) -> None:
    net = write(tmp_path / "a", 0)
    state = net.state_dict()
    name = next(key for key, value in state.items() if value.ndim == 4)
    state[name][0, 0, 0, 0] = 1e5
    checkpoint.save(tmp_path / "a", state, checkpoint.read_card(tmp_path / "a"))
    assert average.main([str(tmp_path / "a"), "-o", str(tmp_path / "half"), "--half"]) == 1
    assert not (tmp_path / "half.safetensors").exists()


def test_other_networks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", 0)
    write(tmp_path / "b", 0, classes=4)
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "mean")]
    assert average.main(arguments) == 1
    assert "other classes" in capsys.readouterr().err
    assert not (tmp_path / "mean.json").exists()
