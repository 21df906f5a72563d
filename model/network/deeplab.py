"""DeepLabv3+ (Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution").

An encoder at a chosen output stride, atrous spatial pyramid pooling on its last
map, and a small decoder that joins the result with a low-level feature of
stride 4. Without the decoder this is DeepLabv3. Numeric details (epsilons,
padding, where the ReLUs are) follow the official TensorFlow implementation.

Images are (N, 3, H, W) in [0, 255], RGB, or have more channels where the
configuration says so. Logits have the network's own stride:
4 with the decoder, the output stride without. The caller resizes them: the
loss, the evaluator and the exporter each do it once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.network.backbones.efficientnet_lite import EfficientNetLite
from model.network.backbones.features import Backbone, Features
from model.network.backbones.mobilenet_v2 import MobileNetV2
from model.network.backbones.mobilenet_v3 import MobileNetV3Large
from model.network.backbones.resnet import ResNet
from model.network.backbones.timm_features import PREFIX, TimmFeatures
from model.network.backbones.xception import Xception
from model.network.config import ModelConfig
from model.network.layers import ConvBN, FixedPadConv, Norm, resize
from postprocess.results.facts import Calibration, Color

NORM = Norm(eps=1e-5, momentum=0.0003)  # of everything behind the backbone

BACKBONES: dict[str, Callable[[ModelConfig], Backbone]] = {
    "resnet_v1_50_beta": lambda c: _resnet(50, True, c),
    "resnet_v1_101_beta": lambda c: _resnet(101, True, c),
    "resnet50": lambda c: _resnet(50, False, c),
    "resnet101": lambda c: _resnet(101, False, c),
    "xception_65": lambda c: _xception(65, c),
    "xception_71": lambda c: _xception(71, c),
    "mobilenet_v2": lambda c: MobileNetV2(
        c.depth_multiplier, output_stride=c.output_stride, in_channels=c.channels
    ),
    "mobilenet_v3_large": lambda c: MobileNetV3Large(
        output_stride=c.output_stride, in_channels=c.channels
    ),
    "efficientnet_lite0": lambda c: EfficientNetLite(0, c.output_stride, in_channels=c.channels),
    "efficientnet_lite1": lambda c: EfficientNetLite(1, c.output_stride, in_channels=c.channels),
    "efficientnet_lite2": lambda c: EfficientNetLite(2, c.output_stride, in_channels=c.channels),
}


def backbone_of(config: ModelConfig) -> Backbone:
    """The encoder of a config; raises BackboneError if timm cannot provide it."""
    if config.backbone.startswith(PREFIX):
        return TimmFeatures(config.backbone, config.output_stride, in_channels=config.channels)
    return BACKBONES[config.backbone](config)


def _resnet(depth: int, beta: bool, config: ModelConfig) -> ResNet:
    return ResNet(
        depth,
        beta=beta,
        output_stride=config.output_stride,
        multi_grid=config.multi_grid,
        in_channels=config.channels,
    )


def _xception(depth: int, config: ModelConfig) -> Xception:
    return Xception(
        depth,
        output_stride=config.output_stride,
        multi_grid=config.multi_grid,
        after_depthwise=config.after_depthwise,
        in_channels=config.channels,
    )


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 1, *, rate: int = 1) -> ConvBN:
    """Convolution, batch norm and ReLU: the building block of ASPP and decoder."""
    return ConvBN(FixedPadConv(inputs, outputs, kernel, rate=rate), NORM, nn.ReLU(inplace=True))


class AtrousSeparableConv(nn.Sequential):
    """Depthwise atrous convolution, then pointwise, with batch norm and ReLU after BOTH (3.1)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, rate: int = 1) -> None:
        depthwise = FixedPadConv(inputs, inputs, kernel, rate=rate, groups=inputs)
        super().__init__(
            ConvBN(depthwise, NORM, nn.ReLU(inplace=True)), conv_bn_relu(inputs, outputs)
        )


class ImagePooling(nn.Module):
    """The image-level feature: a global mean, projected, then spread over the map again."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = conv_bn_relu(inputs, outputs)

    def pooled(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', 1, 1)."""
        # Always in float32: the sum over a large map overflows in half precision.
        mean = x.float().mean((2, 3), keepdim=True).to(x.dtype)
        return self.project(mean)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W), the same at every pixel."""
        # Bilinear resizing of one pixel is a constant, so expand is exact.
        return self.pooled(x).expand(-1, -1, x.shape[2], x.shape[3])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: image pooling, a 1x1 and one 3x3 per rate, concatenated."""

    def __init__(self, inputs: int, config: ModelConfig) -> None:
        super().__init__()
        outputs = config.aspp_channels
        atrous = AtrousSeparableConv if config.aspp_separable else conv_bn_relu
        self.pooling = ImagePooling(inputs, outputs) if config.image_pooling else None
        self.branches = nn.ModuleList([conv_bn_relu(inputs, outputs)])
        self.branches.extend(atrous(inputs, outputs, 3, rate=rate) for rate in config.rates)
        concatenated = outputs * (len(self.branches) + config.image_pooling)
        self.project = conv_bn_relu(concatenated, outputs)
        self.dropout = nn.Dropout(config.aspp_dropout)
        self.refine = conv_bn_relu(outputs, outputs, 3) if config.aspp_refine else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H/os, W/os) -> (N, 256, H/os, W/os)."""
        pooled = [] if self.pooling is None else [self.pooling(x)]
        maps = pooled + [branch(x) for branch in self.branches]
        return self.refine(self.dropout(self.project(torch.cat(maps, dim=1))))  # type: ignore[no-any-return]


class DecoderStage(nn.Module):
    """Joins an upsampled map with a reduced low-level feature and refines the two."""

    def __init__(self, inputs: int, low_inputs: int, convs: int, config: ModelConfig) -> None:
        super().__init__()
        refine = AtrousSeparableConv if config.decoder_separable else conv_bn_relu
        outputs = config.decoder_channels
        self.reduce = conv_bn_relu(low_inputs, config.low_level_channels)
        widths = [inputs + config.low_level_channels] + [outputs] * convs
        self.convs = nn.Sequential(
            *(
                refine(widths[index], widths[index + 1], config.decoder_kernel)
                for index in range(convs)
            )
        )
        self.align_corners = config.align_corners

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        """x (N, C, h, w), low (N, L, H, W) -> (N, 256, H, W)."""
        x = resize(x, (low.shape[2], low.shape[3]), align_corners=self.align_corners)
        return self.convs(torch.cat([x, self.reduce(low)], dim=1))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """The proposed decoder (section 3.1), and the U-Net-like variant of table 2's last row."""

    def __init__(self, features: Backbone, config: ModelConfig) -> None:
        super().__init__()
        inputs = config.aspp_channels
        self.conv3: DecoderStage | None = None
        convs = config.decoder_convs
        if config.decoder_features == "conv2+conv3":  # one refinement after each of the two joins
            convs = 1
            self.conv3 = DecoderStage(inputs, features.channels.conv3, convs, config)
            inputs = config.decoder_channels
        self.conv2 = DecoderStage(inputs, features.channels.conv2, convs, config)

    def forward(self, x: Tensor, features: Features) -> Tensor:
        """x (N, 256, H/os, W/os) -> (N, 256, H/4, W/4)."""
        if self.conv3 is not None:
            x = self.conv3(x, features.conv3)  # (N, 256, H/8, W/8)
        return self.conv2(x, features.conv2)  # type: ignore[no-any-return]


class DeepLabV3Plus(nn.Module):
    """The whole network, from pixel values to logits at its own stride."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.classes: tuple[str, ...] = ()  # their names; empty if unknown
        self.palette: tuple[Color, ...] = ()  # their colours; empty if unknown
        self.calibration: Calibration | None = None
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)
        self.backbone = backbone_of(config)
        self.aspp = ASPP(self.backbone.channels.high, config)
        self.decoder = Decoder(self.backbone, config) if config.decoder else None
        width = config.decoder_channels if config.decoder else config.aspp_channels
        self.logits = nn.Conv2d(width, config.num_classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation, for training from scratch; the classifier starts near uniform."""
        if self.logits.weight.is_meta:  # it has no values, and PyTorch would load its compiler
            return
        own = {*self.backbone.modules()} if self.backbone.initialised else set()
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module not in own:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    @property
    def stride(self) -> int:
        """How many image pixels one logit pixel stands for."""
        return 4 if self.config.decoder else self.config.output_stride

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 255] -> (N, K, h, w) logits, h = ceil(H / stride)."""
        features = self.backbone((image - self.mean) / self.std)
        x = self.aspp(features.high)  # (N, 256, H/os, W/os)
        if self.decoder is not None:
            x = self.decoder(x, features)  # (N, 256, H/4, W/4)
        return self.logits(x)  # type: ignore[no-any-return]
