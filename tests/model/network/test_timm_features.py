"""timm's backbones behind the paper's head, from training to the service's engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from export.writer import ExportOptions, export
from model import checkpoint
from model.checkpoint import Card, CheckpointError
from model.data.dataset import find
from model.network.backbones.features import BackboneError
from model.network.backbones.timm_features import TimmFeatures
from model.network.config import ModelConfig
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import served_map
from model.train import assembly, training
from model.train.distributed import World
from model.train.pretrained import timm_weights
from model.train.recipe import RecipeError
from model.train.run import RunFolder
from service.inference.engine import Engine, EngineOptions
from tests.model import voc_folder
from tests.model.nets import photo
from tests.model.train.test_main import make_recipe, pace

pytestmark = pytest.mark.slow

# timm's own test networks, of some 100,000 weights: a ConvNeXt has no batch norm.
SMALL = ("timm:test_convnext", "timm:test_efficientnet")


def config(backbone: str, **changes: object) -> ModelConfig:
    fields = {
        "backbone": backbone,
        "aspp_channels": 16,
        "atrous_rates": (6,),
        "decoder_channels": 16,
        "low_level_channels": 8,
        "crop_size": (65, 65),
    }
    return ModelConfig.model_validate(fields | changes)


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_maps_have_the_strides_that_the_head_needs(backbone: str, output_stride: int) -> None:
    features = TimmFeatures(backbone, output_stride).eval()
    for height, width in ((64, 96), (65, 97), (50, 33)):
        maps = features(torch.zeros(1, 3, height, width))
        for each, stride in zip(maps, (4, 8, output_stride), strict=True):
            assert each.shape[2:] == (-(-height // stride), -(-width // stride))
    assert tuple(each.shape[1] for each in maps) == tuple(features.channels)


def test_the_last_map_is_that_of_timm_itself() -> None:
    features = TimmFeatures("timm:test_convnext", 32).eval()
    theirs = timm.create_model("test_convnext", features_only=True).eval()
    theirs.load_state_dict(features.net.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(features(x).high, theirs(x)[-1])


@pytest.mark.parametrize(
    ("backbone", "output_stride", "says"),
    [
        ("timm:no_such_net", 16, "timm has no such network"),
        ("timm:edgenext_xx_small", 16, "set model.output_stride=32"),
        ("timm:swin_tiny_patch4_window7_224", 32, "layout NHWC"),
        ("timm:vit_tiny_patch16_224", 32, "take another backbone"),
    ],
)
def test_networks_that_do_not_fit_are_refused(backbone: str, output_stride: int, says: str) -> None:
    with pytest.raises(BackboneError, match=says):
        TimmFeatures(backbone, output_stride)
    recipe = make_recipe(model=config(backbone, output_stride=output_stride))
    with pytest.raises(RecipeError, match=says):
        assembly.build(recipe)


@pytest.mark.parametrize("name", ["timm:hf-hub:somebody/net", "timm:../net", "timm:"])
def test_a_card_cannot_name_an_address_or_a_path(name: str) -> None:
    with pytest.raises(ValidationError):
        config(name)


def test_a_checkpoint_without_timms_network_is_explained(tmp_path: Path) -> None:
    net = DeepLabV3Plus(config(SMALL[0], num_classes=2))
    card = Card(model=net.config, classes=("a", "b"), palette=((0, 0, 0), (1, 1, 1)))
    path = checkpoint.save(tmp_path / "net", net.state_dict(), card)
    description = path.with_suffix(".json")
    description.write_text(description.read_text().replace("test_convnext", "test_convnoxt"))
    with pytest.raises(CheckpointError, match="timm has no such network"):
        checkpoint.load(path)


def test_pretrained_weights_reach_the_network(tmp_path: Path) -> None:
    """From a file in place of the download, which timm is told by its own option."""
    theirs: Any = timm.create_model("test_efficientnet")
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors"), "hf_hub_id": None, "url": ""}
    card, state = timm_weights("timm:test_efficientnet", pretrained_cfg_overlay=overlay)
    assert card.mean == pytest.approx([255 * x for x in theirs.pretrained_cfg["mean"]])
    assert card.std == pytest.approx([255 * x for x in theirs.pretrained_cfg["std"]])
    features = TimmFeatures("timm:test_efficientnet", 16)
    features.load_state_dict(state)
    stem = theirs.state_dict()["conv_stem.weight"]
    assert torch.equal(features.state_dict()["net.conv_stem.weight"], stem)


@pytest.mark.parametrize("backbone", SMALL)
def test_it_trains_and_the_exported_file_gives_the_checkpoints_mask(
    backbone: str, tmp_path: Path
) -> None:
    data = voc_folder.make(tmp_path / "data")
    recipe = make_recipe(model=config(backbone), iterations=2, batch_norm_momentum=0.5)
    dataset = find("voc", data, "train")
    folder = RunFolder(tmp_path, World())
    path = training.train(recipe, dataset, folder, pace(recipe), resume=False, workers=0)
    before = assembly.build(recipe).state_dict()
    after = checkpoint.read_weights(path)
    first = next(key for key in before if key.startswith("backbone.net.") and "stem" in key)
    assert not torch.equal(before[first], after[first])
    target = tmp_path / "net.onnx"
    export(path, target, ExportOptions(size=(65, 65)))
    engine = Engine(target, EngineOptions("cpu", threads=1))
    image = photo(65, 65)
    labels = engine.run(image[None])[0]
    assert np.mean(labels == served_map(checkpoint.load(path), image)) > 0.999
