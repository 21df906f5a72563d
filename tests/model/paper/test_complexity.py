"""Multiply-adds: the reference's integers, the paper's columns, and the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from model.network.config import PUBLISHED, ModelConfig
from model.paper.complexity import BlockRow, build, main, measure, merged, shape_table
from model.paper.tables import TABLE_3, TABLE_5, Setting, count
from tests.shared import REFERENCE, needs_reference

# Names of the reference's options, where ours differ.
OPTIONS = {"aspp_sep": "aspp_separable", "dec_sep": "decoder_separable",
           "image_level": "image_pooling"}  # fmt: skip


def counted() -> list[dict[str, Any]]:
    if not REFERENCE.is_dir():
        return [{}]
    found: list[dict[str, Any]] = json.loads((REFERENCE / "macs.json").read_text())
    return found


def configured(entry: dict[str, Any]) -> ModelConfig:
    options = {OPTIONS.get(key, key): value for key, value in entry["options"].items()}
    options.setdefault("multi_grid", (1, 1, 1))
    published = PUBLISHED[entry["variant"]]
    return ModelConfig.model_validate({**published, "backbone": entry["variant"], **options})


@pytest.mark.slow
@needs_reference
@pytest.mark.parametrize("entry", counted())
def test_counts_are_the_references_to_the_integer(entry: dict[str, Any]) -> None:
    """Backbone, ASPP, decoder and logits, with and without the rounding of atrous convolution."""
    ours = measure(configured(entry), tuple(entry["input"]), entry["scales"], flip=entry["flip"])
    components = {part: [ours.logical[part], ours.rounded[part]] for part in ours.logical}
    assert components == entry["components_logical_s2b"]
    assert ours.multiply_adds == entry["conv_macs_s2b"]
    assert ours.multiply_adds_logical == entry["conv_macs_logical"]


SINGLE_SCALE = [
    (table.backbone, setting)
    for table in (TABLE_3, TABLE_5)
    for setting in table.settings
    if not setting.multi_scale
]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "setting"), SINGLE_SCALE)
def test_papers_columns_reproduce_within_half_a_percent(backbone: str, setting: Setting) -> None:
    """Except one cell, in which the paper contradicts itself (docs/complexity.md)."""
    difference = count(backbone, setting).multiply_adds / 1e9 / setting.published - 1
    is_slip = setting.published == 101.28
    assert (abs(difference) < 0.005) != is_slip


@pytest.mark.slow
def test_convolutions_are_counted_by_hand() -> None:
    """The classifier and an atrous branch with rounding, computed from their sizes."""
    result = measure(ModelConfig(backbone="mobilenet_v2", decoder=False), (65, 65))
    assert result.logical["logits"] == 5 * 5 * 256 * 21
    rows = {row.name: row for row in shape_table(
        build(ModelConfig(backbone="mobilenet_v2", decoder=False)), (65, 65))}  # fmt: skip
    assert rows["aspp.branches.2"].multiply_adds == 12 * 12 * 9 * 320 * 256  # 5 -> 12 at rate 12
    assert rows["aspp.branches.2"].parameters == 9 * 320 * 256 + 2 * 256
    assert rows["logits"].shape == (21, 5, 5)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "millions"), [(0, 4.7), (1, 5.4), (2, 6.1)])
def test_light_backbones_have_the_published_parameters(number: int, millions: float) -> None:
    """From lite/README.md in the TensorFlow TPU repository, which includes the classifier.

    That is a 1x1 to 1280 channels with batch norm, then 1000 classes.
    """
    net = build(ModelConfig.model_validate({"backbone": f"efficientnet_lite{number}"}))
    classifier = net.backbone.channels.high * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    total = sum(parameter.numel() for parameter in net.backbone.parameters()) + classifier
    assert round(total / 1e6, 1) == millions


@pytest.mark.slow
def test_flipping_doubles_and_scales_add_up() -> None:
    """There is one pass for each scale and mirror image."""
    config = ModelConfig(backbone="efficientnet_lite0")
    parts = [measure(config, size).multiply_adds for size in ((33, 49), (65, 97))]
    both = measure(config, (65, 97), (0.5, 1.0), flip=True)
    assert both.multiply_adds == 2 * sum(parts)


@pytest.mark.slow
def test_nothing_is_allocated() -> None:
    """Every parameter and buffer is on the meta device."""
    net = build(ModelConfig(backbone="xception_71"))
    assert all(tensor.is_meta for tensor in [*net.parameters(), *net.buffers()])
    assert isinstance(net, nn.Module)


def test_equal_rows_are_merged() -> None:
    """Xception's middle flow is sixteen times the same."""
    row = BlockRow("backbone.stages.3", (8, 4, 4), 1, (2,), 10, 100)
    rows = [row._replace(name=f"backbone.stages.{index}") for index in range(3, 6)]
    other = row._replace(name="logits", parameters=1)
    assert list(merged([*rows, other])) == [
        row._replace(name="backbone.stages.3-5", parameters=30, multiply_adds=300),
        other,
    ]


@pytest.mark.slow
def test_json_has_the_counts_and_the_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    """MobileNetV2 without decoder: 2.75 B published, 2.11 M trainable parameters."""
    assert main(["--backbone", "mobilenet_v2", "--no-decoder", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["multiply_adds"] == 2_742_445_696
    assert figures["multiply_adds_logical"] == 2_740_709_056
    assert figures["parameters"] == 2_113_557


@pytest.mark.slow
def test_summary_lists_every_block(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line has the block's name, shape and rates."""
    assert main(["--backbone", "xception_65", "--separable", "--summary"]) == 0
    out = capsys.readouterr().out
    for words in (
        "backbone.stages.3-18",
        "728 x 33 x 33",
        "decoder.conv2.reduce",
        "48 x 129 x 129",
    ):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backbone", "vgg16"], ["vgg16", "xception_65"]),
        (["--backbone", "xception_65", "--output-stride", "5"], ["5", "8, 16, 32"]),
        (["--backbone", "xception_65", "--size", "0,9"], ["0,9", "below 1"]),
    ],
)
def test_wrong_options_are_usage_errors(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, and the message has the option's value and the valid ones."""
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)


def test_option_that_does_not_fit_the_backbone_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Only MobileNetV2 has a depth multiplier."""
    assert main(["--backbone", "xception_65", "--depth-multiplier", "0.5"]) == 2
    assert "depth_multiplier=0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_further_channel_costs_one_filter_of_the_first_convolution() -> None:
    """EfficientNet-Lite0 begins with 32 filters of 3 x 3 at half the size."""
    photos = ModelConfig(backbone="efficientnet_lite0")
    bands = ModelConfig(backbone="efficientnet_lite0", channels=4)
    before, after = (sum(measure(each, (64, 64)).logical.values()) for each in (photos, bands))
    assert after - before == 32 * 3 * 3 * 32 * 32
