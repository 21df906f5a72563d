"""The network's shapes, its atrous convolutions and its options."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from model.network.backbones.mobilenet_v3 import ExcitedResidual
from model.network.backbones.xception import SeparableConv, Xception
from model.network.config import AfterDepthwise, BackboneName, ModelConfig
from model.network.deeplab import BACKBONES, ImagePooling
from model.paper.complexity import build
from tests.model.nets import batch, shake, tiny, worst

BACKBONE_NAMES = get_args(BackboneName)
STRIDES = (8, 16, 32)


def shape_of(size: tuple[int, int], **settings: object) -> tuple[int, ...]:
    net = build(ModelConfig.model_validate({"backbone": "xception_65", **settings}))
    with torch.inference_mode():
        return tuple(net(torch.empty(2, 3, *size, device="meta")).shape)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONE_NAMES)
@pytest.mark.parametrize("stride", STRIDES)
def test_logits_come_at_stride_four_with_the_decoder_and_at_the_output_stride_without(
    backbone: str, stride: int
) -> None:
    """Every backbone at every output stride, on a size that nothing divides."""
    common = {"backbone": backbone, "output_stride": stride, "num_classes": 7}
    height, width = 75, 110
    assert shape_of((height, width), **common) == (2, 7, 19, 28)
    without = (2, 7, -(-height // stride), -(-width // stride))
    assert shape_of((height, width), **common, decoder=False) == without


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONE_NAMES)
def test_one_set_of_weights_serves_every_output_stride(backbone: str) -> None:
    """A denser map contains the coarser one: every second pixel of OS 8 is OS 16, and so on.

    This is what atrous convolution promises, and it holds exactly on sizes
    32k + 1, where all grids start and end at the corners. It fails for a rate
    that is off anywhere, multi-grid included. MobileNetV3's squeeze-and-excite takes means
    over the grid, so it is left out; of its strides only 8 and 16 belong together.
    """
    image = batch(65, 97) / 255 - 0.5
    multi_grid = (1, 2, 4) if "resnet" in backbone or "xception" in backbone else (1, 1, 1)
    maps: dict[int, Tensor] = {}
    state: dict[str, Tensor] | None = None
    for stride in STRIDES:
        config = ModelConfig.model_validate(
            {"backbone": backbone, "output_stride": stride, "multi_grid": multi_grid}
        )
        with torch.device("meta"):
            net = BACKBONES[backbone](config)
        net.to_empty(device="cpu")
        for part in net.modules():
            if isinstance(part, ExcitedResidual):
                part.excite = nn.Identity()
        state = shake(net).state_dict() if state is None else state
        net.load_state_dict(state)
        with torch.inference_mode():
            maps[stride] = net.eval()(image).high
    assert worst(maps[8][..., ::2, ::2], maps[16]) < 1e-3
    if backbone != "mobilenet_v3_large":
        assert worst(maps[16][..., ::2, ::2], maps[32]) < 1e-3


def test_the_heads_rates_follow_the_output_stride() -> None:
    """The same holds through the ASPP, whose rates are 12, 24, 36 at OS 8 and 3, 6, 9 at OS 32."""
    dense = tiny(output_stride=8, decoder=False, image_pooling=False)
    image = batch(193, 193)
    with torch.inference_mode():
        maps = [dense(image)]
        for stride in (16, 32):
            net = tiny(output_stride=stride, decoder=False, image_pooling=False)
            net.load_state_dict(dense.state_dict())
            maps.append(net(image))
    assert ModelConfig(backbone="xception_65", output_stride=8).rates == (12, 24, 36)
    assert ModelConfig(backbone="xception_65", output_stride=32).rates == (3, 6, 9)
    for denser, coarser in pairwise(maps):
        assert worst(denser[..., ::2, ::2], coarser) < 1e-3


def test_image_pooling_is_the_mean_over_the_map() -> None:
    """The image-level feature has one value per channel, whatever the size."""
    pooling = shake(ImagePooling(3, 4))
    x = torch.rand(2, 3, 5, 7)
    pooled = pooling(x)
    assert pooled.shape == (2, 4, 5, 7)
    alone = pooling(x.mean((2, 3), keepdim=True))
    assert torch.allclose(pooled, alone.expand(-1, -1, 5, 7))


@pytest.mark.parametrize("kind", get_args(AfterDepthwise))
@pytest.mark.parametrize("stage", [0, -1], ids=["first module", "last module"])
def test_norm_and_relu_after_xceptions_depthwise_convolutions_follow_the_option(
    kind: AfterDepthwise, stage: int
) -> None:
    """Section 3.2 written out, on the middle convolution of a module.

    The last module has ReLU after both halves in the published networks too.
    """
    with torch.device("meta"):
        module = Xception(after_depthwise=kind).stages[stage]
    conv = module.get_submodule("convs.1")
    assert isinstance(conv, SeparableConv)
    conv = shake(conv.to_empty(device="cpu"))
    inside = stage == -1 or kind == "batch_norm+relu"
    state = dict(conv.state_dict())
    weight = state["depthwise.weight" if kind == "nothing" else "depthwise.conv.weight"]

    def norm(x: Tensor, half: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, shift = (state[f"{half}.bn.{name}"][:, None, None] for name in names)
        normed: Tensor = (x - mean) / (var + 1e-3).sqrt() * scale + shift
        return normed

    x = torch.randn(1, len(weight), 9, 9, generator=torch.Generator().manual_seed(0))
    depthwise = conv.get_submodule("depthwise" if kind == "nothing" else "depthwise.conv")
    assert isinstance(depthwise, nn.Conv2d)
    rate = int(depthwise.dilation[0])
    y = x if inside else x.relu()
    y = F.conv2d(y, weight, padding=rate, dilation=rate, groups=len(weight))
    y = y if kind == "nothing" else norm(y, "depthwise")
    y = y.relu() if inside and kind != "nothing" else y
    y = norm(F.conv2d(y, state["pointwise.conv.weight"]), "pointwise")
    with torch.inference_mode():
        assert worst(conv(x), y.relu() if inside else y) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("channels", [8, 16, 32, 48, 64])
def test_table_1_channels_of_the_low_level_feature(channels: int) -> None:
    """Table 1 varies the 1x1 convolution of the decoder."""
    net = build(ModelConfig(backbone="xception_65", low_level_channels=channels))
    first = net.get_parameter("decoder.conv2.convs.0.conv.weight")
    assert first.shape == (256, 256 + channels, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"decoder_convs": 1}, [(256, 304, 3, 3)]),
        ({}, [(256, 304, 3, 3), (256, 256, 3, 3)]),
        ({"decoder_convs": 3}, [(256, 304, 3, 3), (256, 256, 3, 3), (256, 256, 3, 3)]),
        ({"decoder_convs": 1, "decoder_channels": 128}, [(128, 304, 3, 3)]),
        ({"decoder_convs": 1, "decoder_kernel": 1}, [(256, 304, 1, 1)]),
        ({"decoder_features": "conv2+conv3"}, [(256, 304, 3, 3), (256, 304, 3, 3)]),
    ],
)
def test_table_2_structures_of_the_decoder(
    settings: dict[str, object], weights: list[tuple[int, ...]]
) -> None:
    """Table 2 varies number, width and kernel of the convolutions, and joins Conv3 like U-Net."""
    config = ModelConfig.model_validate({"backbone": "resnet_v1_101_beta", **settings})
    net = build(config)
    found = [
        tuple(value.shape)
        for name, value in net.named_parameters()
        if name.startswith("decoder.") and ".convs." in name and name.endswith("conv.weight")
    ]
    assert sorted(found) == sorted(weights)
    with torch.inference_mode():
        assert net(torch.empty(1, 3, 65, 65, device="meta")).shape == (1, 21, 17, 17)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"output_stride": 5}, ["output_stride", "5", "8, 16 or 32"]),
        ({"backbone": "vgg16"}, ["backbone", "vgg16", "xception_65", "mobilenet_v2"]),
        ({"depth_multiplier": 0.5}, ["depth_multiplier=0.5", "mobilenet_v2", "xception_65"]),
        ({"backbone": "mobilenet_v2", "multi_grid": (1, 2, 4)}, ["multi_grid=(1, 2, 4)"]),
        (
            {"backbone": "resnet101", "after_depthwise": "nothing"},
            ["after_depthwise='nothing'", "only applies to Xception", "resnet101"],
        ),
        ({"num_classes": 0}, ["num_classes", "0", "greater than or equal to 2"]),
        ({"num_classes": 1}, ["num_classes", "1", "add a background class"]),
        (
            {"decoder_features": "conv2+conv3", "decoder_convs": 3},
            ["decoder_convs=3", "conv2+conv3", "leave decoder_convs out"],
        ),
        ({"decoder_kernel": 5}, ["decoder_kernel", "5", "1 or 3"]),
        ({"decoder_convz": 2}, ["decoder_convz", "not permitted"]),
    ],
)
def test_wrong_option_is_named_with_its_value_and_the_valid_ones(
    settings: dict[str, object], words: list[str]
) -> None:
    """A configuration that cannot be built says which field to change, and to what."""
    with pytest.raises(ValidationError) as error:
        ModelConfig.model_validate({"backbone": "xception_65", **settings})
    for word in words:
        assert word in str(error.value)


def test_pixels_are_normalised_by_the_networks_own_mean_and_std() -> None:
    """The network takes 0..255; mean and std are part of its configuration."""
    net, other = tiny(), tiny(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    other.load_state_dict(net.state_dict())
    image = batch(65, 65)
    with torch.inference_mode():
        assert worst(net(image), other((image - 127.5) / 127.5)) < 1e-4
