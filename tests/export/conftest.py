"""A tiny checkpoint and its exported file, made once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export.writer import ExportOptions, export
from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import voc_palette
from model.network.config import ModelConfig
from model.network.deeplab import DeepLabV3Plus
from tests.model.conftest import one_thread  # noqa: F401 - the fixture holds for these tests too

SIZE = (65, 96)  # odd and even: both kinds of SAME padding
PHASED_SIZE = (65, 97)  # logits lie 4 pixels apart
CONFIG = ModelConfig(
    backbone="mobilenet_v2",
    num_classes=5,
    depth_multiplier=0.25,
    aspp_channels=16,
    atrous_rates=(6,),
    aspp_separable=True,
    decoder_separable=True,
    decoder_channels=16,
    low_level_channels=8,
    crop_size=SIZE,
)


def save_random(path: Path, seed: int) -> Path:
    """A checkpoint with random weights whose labels vary over the image."""
    torch.manual_seed(seed)
    net = DeepLabV3Plus(CONFIG)
    torch.nn.init.normal_(net.logits.weight)
    classes = ("background", "a", "b", "c", "d")
    card = Card(model=CONFIG, classes=classes, palette=voc_palette(5), source="random")
    return checkpoint.save(path, net.state_dict(), card)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("checkpoint") / "tiny", seed=0)


def once(name: str, factory: pytest.TempPathFactory, make: Callable[[Path], object]) -> Path:
    """Create a file in the first test process that needs it; the others wait and reuse it."""
    base = factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported file of the tiny checkpoint."""
    return once("exported.onnx", tmp_path_factory, lambda path: export(tiny, path, ExportOptions()))


@pytest.fixture(scope="session")
def aligned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with all outputs, for photos of any aligned size."""
    options = ExportOptions(size=PHASED_SIZE, policy="aligned", confidence=True, probabilities=True)
    return once("aligned.onnx", tmp_path_factory, lambda path: export(tiny, path, options))


@pytest.fixture(scope="session")
def phased(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with confidence, at a size whose labels are computed in phases."""
    options = ExportOptions(size=PHASED_SIZE, confidence=True)
    return once("phased.onnx", tmp_path_factory, lambda path: export(tiny, path, options))
