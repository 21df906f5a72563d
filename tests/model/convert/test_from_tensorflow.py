"""The official implementation's checkpoints are read, and every variable is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import checkpoint
from model.convert.__main__ import main
from model.convert.accounting import ConvertError
from model.convert.from_tensorflow import ConversionOptions, Names, convert_variables
from model.convert.variables import Variables
from model.network.config import ModelConfig
from model.network.deeplab import DeepLabV3Plus
from model.paper.complexity import build
from tests.model.convert import bundles
from tests.model.nets import batch, tiny
from tests.shared import REFERENCE, needs_reference

SOURCE = Path("variables.npz")


def variables_of(net: DeepLabV3Plus) -> Variables:
    """A network's weights as TensorFlow would name and lay them out."""
    names = Names(net.config)
    found: Variables = {}
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        name = names.of(key)
        array = value.numpy()
        if array.ndim == 4:
            depthwise = name.endswith("depthwise_weights")
            array = array.transpose(2, 3, 0, 1) if depthwise else array.transpose(2, 3, 1, 0)
        found[name] = array
    return found


def write(path: Path, variables: dict[str, Any]) -> None:
    np.savez(path, **variables)


@needs_reference
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet_v1_101_beta_dec0", {"decoder": False, "multi_grid": (1, 2, 4)}),
        ("resnet_v1_101_beta_dec1", {"decoder": True, "decoder_separable": False}),
        ("xception_65_dec0", {"decoder": False, "multi_grid": (1, 1, 1)}),
        ("xception_65_dec1", {"aspp_separable": True, "decoder_separable": True}),
        ("xception_65_dec1_nosc", {"aspp_separable": False, "decoder_separable": False}),
        ("xception_71_city_dec1", {"image_pooling": False, "num_classes": 19}),
        ("mobilenet_v2_dec0", {"decoder": False, "atrous_rates": ()}),
        ("mobilenet_v2_dec1", {"decoder": True, "decoder_separable": True}),
    ],
)
def test_network_is_inferred_from_the_references_variables(
    name: str, expected: dict[str, object]
) -> None:
    """All of the reference's own variable lists convert, with nothing missing or left over."""
    listed = json.loads((REFERENCE / f"vars_{name}.json").read_text())
    variables = {v["name"]: np.zeros(v["shape"], np.float32) for v in listed["variables"]}
    converted = convert_variables(variables, ConversionOptions(), SOURCE)
    assert isinstance(converted.card, checkpoint.Card)
    config = converted.card.model
    assert config.backbone == listed["model_variant"]
    for field, value in expected.items():
        assert getattr(config, field) == value, field
    assert sum(value.numel() for value in converted.state.values()) == (
        listed["num_params_total"] + sum("num_batches" in key for key in converted.state)
    )
    trainable = sum(parameter.numel() for parameter in build(config).parameters())
    assert trainable == listed["num_params_trainable"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"atrous_rates": ()}, marks=pytest.mark.slow),
        pytest.param({"image_pooling": False}, marks=pytest.mark.slow),
        pytest.param(
            {"decoder": False, "decoder_channels": 256, "low_level_channels": 48},
            marks=pytest.mark.slow,
        ),
        pytest.param({"aspp_separable": True, "decoder_separable": True}, marks=pytest.mark.slow),
        pytest.param(
            {"decoder_separable": True, "decoder_convs": 3, "low_level_channels": 32},
            marks=pytest.mark.slow,
        ),
        pytest.param({"decoder_convs": 1, "decoder_kernel": 1}, marks=pytest.mark.slow),
        pytest.param({"depth_multiplier": 0.5}, marks=pytest.mark.slow),
        pytest.param({"depth_multiplier": 1.4}, marks=pytest.mark.slow),
        pytest.param({"depth_multiplier": 0.35}, marks=pytest.mark.slow),
    ],
)
def test_configuration_and_weights_are_recovered_from_the_variables(
    settings: dict[str, object], tmp_path: Path
) -> None:
    """The command rebuilds configuration and weights from an .npz, ignoring optimiser slots."""
    net = tiny(21, crop_size=(513, 513), **settings)
    variables = variables_of(net)
    slots = {f"{name}/Momentum": np.zeros(1) for name in variables}
    extra = {"global_step": np.int64(30000), "beta1_power": np.float32(0.9)}
    write(tmp_path / "variables.npz", {**variables, **slots, **extra})
    rates = "" if settings.get("atrous_rates") == () else "6,12,18"
    arguments = [str(tmp_path / "variables.npz"), str(tmp_path / "net")]
    assert main(["tf", *arguments, "--atrous-rates", rates]) == 0
    loaded = checkpoint.load(tmp_path / "net")
    assert loaded.config == net.config
    with torch.inference_mode():
        assert torch.equal(loaded(batch(65, 65)), net(batch(65, 65)))


def test_151_outputs_mean_ade20k() -> None:
    """0 was ignored in training; the benchmark's 150 classes follow in its order and colours."""
    converted = convert_variables(variables_of(tiny(151)), ConversionOptions(), SOURCE)
    assert isinstance(converted.card, checkpoint.Card)
    classes, palette = converted.card.classes, converted.card.palette
    assert (classes[0], classes[1], classes[13], classes[150]) == (
        "unlabelled", "wall", "person", "flag",
    )  # fmt: skip
    assert (palette[0], palette[1], palette[13]) == ((0, 0, 0), (120, 120, 120), (150, 5, 61))
    assert len(set(classes)) == 151


def test_options_that_leave_no_trace_are_taken_from_the_command_line(tmp_path: Path) -> None:
    """Output stride, crop size and class names."""
    net = tiny(3)
    write(tmp_path / "v.npz", variables_of(net))
    (tmp_path / "classes.txt").write_text("sky\ntraffic sign 1 2 3\ncar\n")
    arguments = ["tf", str(tmp_path / "v.npz"), str(tmp_path / "net"), "--output-stride", "8"]
    arguments += ["--crop-size", "385x513", "--classes", str(tmp_path / "classes.txt")]
    assert main(arguments) == 0
    card = checkpoint.read_card(tmp_path / "net")
    assert (card.model.output_stride, card.model.crop_size) == (8, (385, 513))
    assert card.classes == ("sky", "traffic sign", "car")
    assert card.palette == ((0, 0, 0), (1, 2, 3), (0, 128, 0))


def test_leftover_and_missing_variables_are_named() -> None:
    """A network that loads only in part would segment wrongly without an error."""
    variables = variables_of(tiny())
    variables["dense_prediction_cell/weights"] = np.zeros((1, 1, 4, 4), np.float32)
    del variables["image_pooling/BatchNorm/beta"]
    with pytest.raises(ConvertError) as error:
        convert_variables(variables, ConversionOptions(), SOURCE)
    assert "left over: dense_prediction_cell/weights" in str(error.value)
    assert "missing: image_pooling/BatchNorm/beta" in str(error.value)


def test_unknown_backbone_is_named_with_the_known_ones() -> None:
    """The error names the scopes that were found and those that are supported."""
    with pytest.raises(ConvertError, match="MobilenetV3") as error:
        convert_variables(
            {"MobilenetV3/Conv/weights": np.zeros(1), "logits/semantic/weights": np.zeros(1)},
            ConversionOptions(),
            SOURCE,
        )
    assert "xception_65" in str(error.value)


def test_twenty_names_for_twenty_one_classes_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has both numbers."""
    write(tmp_path / "v.npz", variables_of(tiny(21)))
    (tmp_path / "classes.txt").write_text("\n".join(f"c{i}" for i in range(20)))
    arguments = ["tf", str(tmp_path / "v.npz"), str(tmp_path / "net")]
    assert main([*arguments, "--classes", str(tmp_path / "classes.txt")]) == 1
    message = capsys.readouterr().err
    assert "20 names" in message
    assert "21 classes" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output-stride", "5"], ["--output-stride", "5", "8, 16, 32"]),
        (["--multi-grid", "1,x"], ["--multi-grid", "1,x"]),
        (["--crop-size", "513"], ["--crop-size", "513", "H,W"]),
    ],
)
def test_wrong_options_are_usage_errors(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """argparse's message names the option, the value and what is valid."""
    with pytest.raises(SystemExit) as error:
        main(["tf", "v.npz", "net", *arguments])
    assert error.value.code == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message


def test_atrous_rates_must_be_as_many_as_the_branches() -> None:
    """The variables show how many rates there are, not their values."""
    with pytest.raises(ConvertError, match="has 2 rates, the variables have 3"):
        convert_variables(variables_of(tiny()), ConversionOptions(atrous_rates=(6, 12)), SOURCE)


@pytest.mark.parametrize("content", [b"", b"not a zip"])
def test_damaged_npz_is_a_clear_error(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback reaches the user."""
    (tmp_path / "v.npz").write_bytes(content)
    assert main(["tf", str(tmp_path / "v.npz"), str(tmp_path / "net")]) == 1
    assert "v.npz" in capsys.readouterr().err


def test_imagenet_checkpoint_becomes_backbone_weights(tmp_path: Path) -> None:
    """The network has no segmentation head; the ImageNet classifier is left out."""
    net = tiny()
    variables = {k: v for k, v in variables_of(net).items() if k.startswith("MobilenetV2/")}
    variables["MobilenetV2/Conv_1/weights"] = np.zeros((1, 1, 80, 1280), np.float32)
    variables["MobilenetV2/Logits/Conv2d_1c_1x1/biases"] = np.zeros(1001, np.float32)
    write(tmp_path / "v.npz", variables)
    assert main(["tf", str(tmp_path / "v.npz"), str(tmp_path / "backbone")]) == 0
    card = checkpoint.read_any_card(tmp_path / "backbone")
    assert isinstance(card, checkpoint.BackboneCard)
    assert (card.backbone, card.depth_multiplier) == ("mobilenet_v2", 0.25)
    state = checkpoint.read_weights(tmp_path / "backbone")
    ours = net.backbone.state_dict()
    assert state.keys() == ours.keys()
    assert all(torch.equal(state[key], ours[key]) for key in ours if "num_batches" not in key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "shards"), [({"decoder": False, "decoder_channels": 256}, 1), ({}, 2)]
)
def test_a_checkpoint_converts_like_its_variables(
    settings: dict[str, Any], shards: int, tmp_path: Path
) -> None:
    """Optimiser slots and counters beside the weights, as training leaves them."""
    net = tiny(21, **settings)
    variables = variables_of(net)
    slots = {f"{name}/Momentum": np.zeros_like(value) for name, value in variables.items()}
    bundles.write(
        tmp_path / "model.ckpt", {**variables, **slots, "global_step": np.int64(7)}, shards=shards
    )
    assert main(["tf", str(tmp_path / "model.ckpt"), str(tmp_path / "net")]) == 0
    loaded = checkpoint.load(tmp_path / "net").state_dict()
    ours = net.state_dict()
    assert all(torch.equal(loaded[key], ours[key]) for key in ours if "num_batches" not in key)
    assert checkpoint.read_card(tmp_path / "net").source == "converted from model.ckpt (TensorFlow)"


def test_names_are_the_published_ones() -> None:
    """A sample from each family, as the model zoo's checkpoints have them."""
    xception = Names(ModelConfig(backbone="xception_71", decoder_separable=True))
    assert xception.of("backbone.stages.4.convs.2.pointwise.conv.weight") == (
        "xception_71/entry_flow/block5/unit_1/xception_module/separable_conv3_pointwise/weights"
    )
    assert xception.of("backbone.stages.22.convs.0.depthwise.conv.weight") == (
        "xception_71/exit_flow/block2/unit_1/xception_module/separable_conv1_depthwise/"
        "depthwise_weights"
    )
    resnet = Names(ModelConfig(backbone="resnet_v1_101_beta"))
    assert resnet.of("backbone.blocks.2.22.conv2.bn.running_var") == (
        "resnet_v1_101/block3/unit_23/bottleneck_v1/conv2/BatchNorm/moving_variance"
    )
    assert resnet.of("decoder.conv2.convs.1.conv.weight") == (
        "decoder/decoder_conv0/decoder_conv0_2/weights"
    )
    mobilenet = Names(ModelConfig(backbone="mobilenet_v2"))
    assert mobilenet.of("backbone.blocks.0.project.conv.weight") == (
        "MobilenetV2/expanded_conv/project/weights"
    )
