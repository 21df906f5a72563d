"""Training a backbone on a folder of photos, and a segmentation network that starts from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import checkpoint, pretrain
from model.checkpoint import Card
from model.data.dataset import DatasetError, voc_palette
from model.data.loader import Order
from model.network.layers import batch_norms
from model.train import assembly
from model.train.distributed import World
from model.train.recipe import RecipeError
from model.train.run import LOG
from model.train.step import train_step
from tests.model.nets import shake, tiny
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
    card = checkpoint.read_any_card(tmp_path / "run" / pretrain.NAME)
    assert card.metrics == {"top1_error": lines[-1]["top1_error"], "images": 4, "classes": 2}
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
    run = pretrain.start(pretrain.read("mobilenet_v2", ["depth_multiplier=0.25"]), 2, World(), 100)
    (group, _) = run.optimizer.param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 4e-5)
    assert (config.rate, config.image_size, config.batch_size) == (0.05, 299, 32)
    schedule = pretrain.Schedule(config, images=3200)  # 100 iterations an epoch
    assert [schedule.factor(i) for i in (0, 199, 200, 400)] == pytest.approx([1, 1, 0.94, 0.94**2])


def test_error_rates_are_scikit_learns(tmp_path: Path) -> None:
    """Top-1 and top-5 of 7 classes, on photos of the network's own input size."""
    from sklearn.metrics import top_k_accuracy_score

    rng = np.random.default_rng(3)
    for index in range(21):
        folder = tmp_path / f"class{index % 7}"
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (38, 38, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    config = pretrain.read("mobilenet_v2", ["depth_multiplier=0.25", "image_size=33"])
    run = pretrain.start(config, 7, World(), 10)
    judged = pretrain.folder_of(tmp_path)
    net = pretrain.Classifier(config.network, 7)
    net.load_state_dict(run.weights())
    shake(net)
    run.net.load_state_dict(net.state_dict())
    found = pretrain.error_rates(run, judged, config, World())
    margin = (38 - 33 + 1) // 2
    scores = []
    with torch.no_grad():
        for image, _ in judged:
            pixels = np.asarray(image)[margin : margin + 33, margin : margin + 33]
            scores.append(net(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float())[0])
    for rank in (1, 5):
        right = top_k_accuracy_score(judged.targets, torch.stack(scores), k=rank)
        assert found[f"top{rank}_error"] == pytest.approx(1 - right, abs=1e-4)
    assert found["top5_error"] < found["top1_error"]


def test_a_pretraining_starts_from_the_weights_it_names(tmp_path: Path) -> None:
    """A backbone's file, or the backbone of a checkpoint."""
    net = tiny()
    card = Card(model=net.config, classes=tuple("abcde"), palette=voc_palette(5))
    checkpoint.save(tmp_path / "net", net.state_dict(), card)
    changes = ["depth_multiplier=0.25", f"init={tmp_path / 'net'}"]
    run = pretrain.start(pretrain.read("mobilenet_v2", changes), 2, World(), 10)
    ours, theirs = run.net.state_dict(), net.backbone.state_dict()
    assert all(torch.equal(ours[f"backbone.{key}"], theirs[key]) for key in theirs)
    with pytest.raises(RecipeError, match=r"depth_multiplier=1\.0 does not fit"):
        pretrain.start(pretrain.read("mobilenet_v2", [changes[1]]), 2, World(), 10)


def test_what_follows_xceptions_depthwise_convolutions_is_kept_with_the_backbone() -> None:
    """Section 4.3 compares both; a training that starts from the file can then check it."""
    config = pretrain.read("xception_65", ["after_depthwise=batch_norm+relu"])
    assert config.network.after_depthwise == "batch_norm+relu"
    with pytest.raises(RecipeError, match="only applies to Xception"):
        pretrain.read("resnet_v1_101_beta", ["after_depthwise=nothing"])


def test_a_short_pretraining_forgets_the_first_statistics() -> None:
    """As in a training of a network; a run as long as ImageNet's keeps the published momentum."""
    config = pretrain.read("xception_65", [])
    for iterations, momentum in ((30, 0.1), (4_000_000, 0.0003)):
        with torch.device("meta"):
            run = pretrain.start(config, 2, World(torch.device("meta")), iterations)
        norms = {norm.momentum for norm in batch_norms(run.net)}
        assert norms == {momentum}


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


def test_a_broken_photo_of_val_is_named_before_training(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    (data / "val" / "n02" / "1.jpg").write_text("<html>")
    assert command(data, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "val/n02/1.jpg cannot be read" in said
    assert not (tmp_path / "run").exists()


def test_a_single_class_is_refused(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "train" / "n01", tmp_path / "train" / "n01")
    with pytest.raises(DatasetError, match="a single class cannot be learnt"):
        pretrain.splits(tmp_path)


def test_errors_name_the_mistake(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="one folder of photos per class"):
        pretrain.folder_of(tmp_path / "nothing")
    with pytest.raises(RecipeError, match="backbone='vgg'"):
        pretrain.read("vgg", [])
    assert command(photos, "--out", tmp_path, "--set", "accumulate=3") == 2
