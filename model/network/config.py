"""The network's configuration: everything needed to rebuild it, and nothing about training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pixels.bands import MOST_CHANNELS, SampleRange, Samples, check_range

BackboneName = Literal[
    "resnet_v1_50_beta",
    "resnet_v1_101_beta",
    "resnet50",
    "resnet101",
    "xception_65",
    "xception_71",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
]
OutputStride = Literal[8, 16, 32]
# No path and no address behind `timm:`: a card may come from anywhere.
TIMM = re.compile(r"timm:[A-Za-z0-9_.]+")


def _known(backbone: str) -> str:
    names = get_args(BackboneName)
    if backbone not in names and not TIMM.fullmatch(backbone):
        raise ValueError(f"unknown; take {', '.join(names)}, or timm:NAME, a network of timm")
    return backbone


AnyBackbone = Annotated[str, Field(max_length=100), AfterValidator(_known)]  # ours, or timm's
AfterDepthwise = Literal["batch_norm", "batch_norm+relu", "nothing"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Rgb = tuple[Finite, Finite, Finite]
PerChannel = tuple[Finite, ...]
# The published networks have 2048 channels at most. Without bounds a description from anywhere
# could ask for any memory.
Channels = Annotated[int, Field(gt=0, le=8192)]
Rate = Annotated[int, Field(gt=0, le=1024)]
Side = Annotated[int, Field(gt=0, le=16_384)]  # pixels

IMAGENET_MEAN: Rgb = (123.675, 116.28, 103.53)  # torchvision's, times 255
IMAGENET_STD: Rgb = (58.395, 57.12, 57.375)
# x * (2 / 255) - 1: the reference, for all of its backbones but the non-beta ResNets.
REFERENCE_MEAN: Rgb = (127.5, 127.5, 127.5)
REFERENCE_STD: Rgb = (127.5, 127.5, 127.5)
EFFICIENTNET_LITE_MEAN: Rgb = (127.0, 127.0, 127.0)
EFFICIENTNET_LITE_STD: Rgb = (128.0, 128.0, 128.0)
EFFICIENTNET_LITE = {"mean": EFFICIENTNET_LITE_MEAN, "std": EFFICIENTNET_LITE_STD}

# Where the published networks of a backbone differ from the defaults of `ModelConfig`.
PUBLISHED: dict[str, dict[str, Any]] = {
    "resnet_v1_50_beta": {"multi_grid": (1, 2, 4)},
    "resnet_v1_101_beta": {"multi_grid": (1, 2, 4)},
    "resnet50": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "resnet101": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "xception_65": {},
    "xception_71": {},
    "mobilenet_v2": {"atrous_rates": ()},  # the reference gives it the 1x1 and the pooling only
    "mobilenet_v3_large": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "efficientnet_lite0": EFFICIENTNET_LITE,
    "efficientnet_lite1": EFFICIENTNET_LITE,
    "efficientnet_lite2": EFFICIENTNET_LITE,
}


class ModelConfig(BaseModel):
    """A DeepLabv3+ network. The defaults are the paper's (sections 3 and 4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: AnyBackbone
    num_classes: Annotated[int, Field(ge=2, le=255)] = 21
    output_stride: OutputStride = 16
    # 3: photos in RGB. More: TIFF files of so many bands (pixels/bands.py).
    channels: Annotated[int, Field(ge=3, le=MOST_CHANNELS)] = 3
    # Of each channel; where there are three values for more channels, see `extended`.
    mean: PerChannel = REFERENCE_MEAN
    std: PerChannel = REFERENCE_STD
    # The values of 16-bit bands that become 0 and 255; None: 0 and 65535.
    sample_range: SampleRange | None = None

    # Encoder
    multi_grid: tuple[Rate, Rate, Rate] = (1, 1, 1)
    depth_multiplier: Annotated[float, Field(gt=0, le=16)] = 1.0  # MobileNetV2 only
    # What follows each 3x3 depthwise convolution of Xception: batch norm as in the published
    # networks, ReLU too as section 3.2 says, or nothing as in the original Xception.
    after_depthwise: AfterDepthwise = "batch_norm"
    aspp_channels: Channels = 256
    # At output stride 16; see `rates` for others.
    atrous_rates: Annotated[tuple[Rate, ...], Field(max_length=16)] = (6, 12, 18)
    image_pooling: bool = True
    aspp_separable: bool = False
    aspp_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    # torchvision's DeepLabv3 head refines the ASPP output with one more 3x3.
    aspp_refine: bool = False

    # Decoder (tables 1 and 2)
    decoder: bool = True
    decoder_separable: bool = False
    decoder_features: Literal["conv2", "conv2+conv3"] = "conv2"
    low_level_channels: Channels = 48
    decoder_channels: Channels = 256
    decoder_convs: Annotated[int, Field(ge=1, le=3)] = 2
    decoder_kernel: Literal[1, 3] = 3

    align_corners: bool = True
    # Images smaller than this (H, W) are padded bottom-right with the mean pixel, as the
    # reference does at evaluation; larger ones are taken whole.
    crop_size: tuple[Side, Side] = (513, 513)

    @field_validator("crop_size", mode="before")
    @classmethod
    def _one_side_is_a_square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="before")
    @classmethod
    def _every_channel_has_a_mean(cls, given: object) -> object:
        channels = given.get("channels") if isinstance(given, dict) else None
        if not isinstance(given, dict) or not isinstance(channels, int) or channels <= 3:
            return given
        default = {"mean": REFERENCE_MEAN, "std": REFERENCE_STD}
        return given | {key: extended(given.get(key, default[key]), channels) for key in default}

    @model_validator(mode="after")
    def _values_are_of_the_channels(self) -> ModelConfig:
        for key in ("mean", "std"):
            values = getattr(self, key)
            if len(values) != self.channels:
                raise ValueError(
                    f"{key}={list(values)} has {len(values)} values for {self.channels} channels: "
                    "give one for each channel, or the three of RGB"
                )
        check_range(self.samples)
        return self

    @model_validator(mode="after")
    def _mean_and_std_are_on_the_pixels_scale(self) -> ModelConfig:
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} divides the pixels: give numbers above 0")
        small = {"mean": 0 < max(self.mean) <= 1, "std": max(self.std) < 1}
        if any(small.values()):
            given = {"mean": self.mean, "std": self.std}
            wrong = {name: rgb for name, rgb in given.items() if small[name]}
            right = {name: tuple(round(255 * x, 3) for x in rgb) for name, rgb in wrong.items()}
            raise ValueError(
                f"{_listed(wrong)}: on a scale of 0 to 1, pixels here on one of 0 to 255; "
                f"give 255 times as much, {_listed(right)}"
            )
        return self

    @field_validator("num_classes", mode="before")
    @classmethod
    def _one_class_is_none(cls, value: object) -> object:
        if value == 1:
            raise ValueError("a single class cannot be learnt: add a background class and set 2")
        return value

    @model_validator(mode="after")
    def _depth_multiplier_is_mobilenets(self) -> ModelConfig:
        if self.depth_multiplier != 1.0 and self.backbone != "mobilenet_v2":
            raise ValueError(
                f"depth_multiplier={self.depth_multiplier} only applies to mobilenet_v2, "
                f"not to {self.backbone}; leave it at 1.0"
            )
        return self

    @model_validator(mode="after")
    def _after_depthwise_is_xceptions(self) -> ModelConfig:
        if self.after_depthwise != "batch_norm" and not self.backbone.startswith("xception"):
            raise ValueError(
                f"after_depthwise={self.after_depthwise!r} only applies to Xception, "
                f"not to {self.backbone}; leave it at 'batch_norm'"
            )
        return self

    @model_validator(mode="after")
    def _multi_grid_is_resnets_and_xceptions(self) -> ModelConfig:
        if self.multi_grid != (1, 1, 1) and not self.backbone.startswith(("resnet", "xception")):
            raise ValueError(
                f"multi_grid={self.multi_grid} only applies to ResNet and Xception, "
                f"not to {self.backbone}; leave it at (1, 1, 1)"
            )
        return self

    @model_validator(mode="after")
    def _two_joins_have_one_convolution_each(self) -> ModelConfig:
        if self.decoder_features == "conv2+conv3" and self.decoder_convs > 2:
            raise ValueError(
                f"decoder_convs={self.decoder_convs} does not go with decoder_features="
                f"{self.decoder_features!r}, which has one convolution after each of its two "
                "joins (table 2): leave decoder_convs out"
            )
        return self

    @property
    def samples(self) -> Samples:
        """The channels and the sample range of the network's photos."""
        return Samples(self.channels, self.sample_range)

    @property
    def logits_stride(self) -> int:
        """Pixels between two logits: 4 with the decoder, the output stride without."""
        return 4 if self.decoder else self.output_stride

    @property
    def rates(self) -> tuple[int, ...]:
        """ASPP rates at this output stride: 6 at 16 becomes 12 at 8 and 3 at 32."""
        return tuple(max(1, rate * 16 // self.output_stride) for rate in self.atrous_rates)


def extended(values: object, channels: int) -> object:
    """Three means or deviations for more channels: each further one gets the average of the three.

    Any other value is returned unchanged, for the validation to check.
    """
    if not isinstance(values, list | tuple) or len(values) != 3 or channels <= 3:
        return values
    if not all(isinstance(value, int | float) for value in values):
        return values
    return (*values, *[sum(values) / 3] * (channels - 3))


def _listed(values: Mapping[str, object]) -> str:
    """As in `mean=(1, 2, 3) and std=(4, 5, 6)`."""
    return " and ".join(f"{name}={value}" for name, value in values.items())
