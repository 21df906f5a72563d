"""Training a backbone on a folder of photos, and a segmentation network that starts from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import checkpoint, pretrain
from model.data.dataset import DatasetError
from model.data.loader import Order
from model.train import assembly
from model.train.distributed import World
from model.train.recipe import RecipeError
from model.train.run import LOG
from model.train.step import train_step
from tests.model.train.test_main import TINY, make_recipe

pytestmark = pytest.mark.slow

OPTIONS = ["depth_multiplier=0.25", "image_size=33", "batch_size=4", "epochs=2", "ema_decay=0.5"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six red and six blue photos in ImageNet's layout; two of each are the val split."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name, color in (("n01", (200, 40, 40)), ("n02", (40, 40, 200))):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                noise = rng.integers(-30, 30, (40, 48, 3))
                pixels = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.jpg")
    return root


def command(photos: Path, *arguments: str | Path) -> int:
    sets = [word for option in OPTIONS for word in ("--set", option)]
    fixed = ["mobilenet_v2", "--data", str(photos), "--workers", "0", "--log-every", "1", *sets]
    return pretrain.main([*fixed, *map(str, arguments)])


def test_a_segmentation_network_starts_from_a_pretrained_backbone(
    photos: Path, tmp_path: Path
) -> None:
    assert command(photos, "--out", tmp_path / "run") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["iteration"] for line in lines if "top1_error" in line] == [3, 6]
    config = make_recipe(model=TINY, init=str(tmp_path / "run" / pretrain.NAME))
    weights = checkpoint.read_weights(tmp_path / "run" / pretrain.NAME)
    backbone = assembly.build(config).backbone.state_dict()
    assert weights.keys() == backbone.keys()
    assert all(torch.equal(backbone[key], value) for key, value in weights.items())


def test_a_resumed_pretraining_equals_an_uninterrupted_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(photos, "--out", tmp_path / "whole") == 0
    step, calls = train_step, 0

    def killed(*args: object, **options: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return step(*args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            command(photos, "--out", tmp_path / "cut", "--save-every", "2")
    assert command(photos, "--resume", tmp_path / "cut") == 0
    files = [tmp_path / run / f"{pretrain.NAME}.safetensors" for run in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_defaults_are_the_papers() -> None:
    config = pretrain.read("xception_65", [])
    run = pretrain.start(pretrain.read("mobilenet_v2", ["depth_multiplier=0.25"]), 2, World())
    (group, _) = run.optimizer.param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 4e-5)
    assert (config.rate, config.image_size, config.batch_size) == (0.05, 299, 32)
    schedule = pretrain.Schedule(config, images=3200)  # 100 iterations an epoch
    assert [schedule.factor(i) for i in (0, 199, 200, 400)] == pytest.approx([1, 1, 0.94, 0.94**2])


def test_a_picture_depends_only_on_its_position(photos: Path) -> None:
    pictures = pretrain.Pictures(pretrain.folder_of(photos / "train"), Order(12, seed=0), 33)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = pictures[7]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(pictures[7].image, first.image)
    assert not torch.equal(pictures[7 + 12].image, first.image)


def test_splits_of_different_classes_are_refused_before_training(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both splits have the same number of classes, but an id would mean different classes."""
    for split, names in (("train", ("n01", "n02")), ("val", ("n01", "n03"))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / split / name / "0.jpg")
    assert command(tmp_path, "--out", tmp_path / "run") == 2
    assert "train and val have different classes, such as n02" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_errors_name_the_mistake(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="one folder of photos per class"):
        pretrain.folder_of(tmp_path / "nothing")
    with pytest.raises(RecipeError, match="backbone='vgg'"):
        pretrain.read("vgg", [])
    assert command(photos, "--out", tmp_path, "--set", "accumulate=3") == 2
