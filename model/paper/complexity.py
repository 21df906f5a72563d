"""Count parameters and multiply-adds of a network: `python -m model.complexity --backbone B`.

The paper's Multiply-Adds are half of what TensorFlow's profiler counted. TensorFlow
ran an atrous convolution as space-to-batch, plain convolution, batch-to-space: with
rate r each side of the map is rounded up to a multiple of r (33 becomes 36 for rates
6, 12 and 18). `multiply_adds` counts that way; `multiply_adds_logical` leaves the
rounding out, like other tools. Only convolutions count; at the published settings
everything else is at most 0.4 %.

Nothing is computed or allocated: the network runs on PyTorch's meta device.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from model import arguments
from model.network.config import PUBLISHED, BackboneName, ModelConfig
from model.network.deeplab import DeepLabV3Plus
from model.network.layers import scaled
from model.pydantic_errors import mistakes

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # section 4.1
PAPER_SIZE = (513, 513)
ROW = re.compile(
    r"backbone\.(root|stem|last)(\.\d+)?|backbone\.(blocks|stages)\.\d+"
    r"|aspp\.(pooling|project|refine|branches\.\d+)|decoder\.conv\d\.(reduce|convs\.\d+)|logits"
)


class Conv(NamedTuple):
    """One convolution of a forward pass."""

    name: str
    stride: int
    rate: int
    shape: tuple[int, ...]  # of its output, (C, H, W)
    logical: int  # multiply-adds
    rounded: int  # multiply-adds, sides rounded up to the rate


@dataclass
class Complexity:
    """Multiply-adds by component (backbone, aspp, decoder, logits), and the parameters."""

    parameters: int
    rounded: dict[str, int] = field(default_factory=dict)
    logical: dict[str, int] = field(default_factory=dict)

    @property
    def multiply_adds(self) -> int:
        return sum(self.rounded.values())

    @property
    def multiply_adds_logical(self) -> int:
        return sum(self.logical.values())


def build(config: ModelConfig) -> DeepLabV3Plus:
    """The network on the meta device: shapes without numbers."""
    with torch.device("meta"):
        return DeepLabV3Plus(config).eval()


def trace(net: DeepLabV3Plus, size: tuple[int, int]) -> list[Conv]:
    """The convolutions that a meta network runs for one image of `size` (H, W), in order."""
    ran: list[Conv] = []
    hooks = [
        module.register_forward_hook(_recorder(name, ran))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        net(torch.empty(1, net.config.channels, *size, device="meta"))
    for hook in hooks:
        hook.remove()
    return ran


def _recorder(name: str, ran: list[Conv]) -> Any:
    def record(module: nn.Conv2d, _: Any, output: Tensor) -> None:
        channels, height, width = output.shape[1:]
        rate = module.dilation[0]
        per_pixel = module.weight.numel()  # inputs / groups * outputs * kernel area
        rounded = -(-height // rate) * -(-width // rate) * rate * rate
        ran.append(
            Conv(
                name=name,
                stride=module.stride[0],
                rate=rate,
                shape=(channels, height, width),
                logical=height * width * per_pixel,
                rounded=rounded * per_pixel,
            )
        )

    return record


def measure(
    config: ModelConfig,
    size: tuple[int, int] = PAPER_SIZE,
    scales: Sequence[float] = (1.0,),
    *,
    flip: bool = False,
) -> Complexity:
    """Count all passes that `model.predict.label_map` makes over one image of `size` (H, W)."""
    net = build(config)
    result = Complexity(sum(parameter.numel() for parameter in net.parameters()))
    passes = 2 if flip else 1
    for scale in scales:
        for conv in trace(net, (scaled(size[0], scale), scaled(size[1], scale))):
            part = conv.name.split(".")[0]
            result.rounded[part] = result.rounded.get(part, 0) + passes * conv.rounded
            result.logical[part] = result.logical.get(part, 0) + passes * conv.logical
    return result


class BlockRow(NamedTuple):
    """A line of the shape table: the convolutions of one block."""

    name: str
    shape: tuple[int, ...]
    stride: int
    rates: tuple[int, ...]
    parameters: int
    multiply_adds: int


def shape_table(net: DeepLabV3Plus, size: tuple[int, int]) -> list[BlockRow]:
    """Output shape, strides, rates and cost, block by block, of a meta network."""
    parameters: dict[str, int] = {}
    for name, parameter in net.named_parameters():
        parameters[_row(name)] = parameters.get(_row(name), 0) + parameter.numel()
    groups: dict[str, list[Conv]] = {}
    for conv in trace(net, size):
        groups.setdefault(_row(conv.name), []).append(conv)
    return [
        BlockRow(
            name,
            convs[-1].shape,
            max(conv.stride for conv in convs),
            tuple(sorted({conv.rate for conv in convs if conv.rate > 1})),
            parameters[name],
            sum(conv.rounded for conv in convs),
        )
        for name, convs in groups.items()
    ]


def _row(name: str) -> str:
    match = ROW.match(name)
    return match.group() if match else name


def merged(rows: Sequence[BlockRow]) -> Iterator[BlockRow]:
    """Join rows that differ only in their number into one: `stages.3-18`."""
    group: list[BlockRow] = []
    for row in [*rows, None]:
        if group and (row is None or row[1:] != group[0][1:] or _stem(row) != _stem(group[0])):
            yield _merge(group)
            group = []
        if row is not None:
            group.append(row)


def _stem(row: BlockRow) -> str:
    return row.name.rstrip("0123456789")


def _merge(group: list[BlockRow]) -> BlockRow:
    if len(group) == 1:
        return group[0]
    return group[0]._replace(
        name=f"{group[0].name}-{group[-1].name.rsplit('.', 1)[1]}",
        parameters=sum(row.parameters for row in group),
        multiply_adds=sum(row.multiply_adds for row in group),
    )


def summary(config: ModelConfig, size: tuple[int, int]) -> str:
    """The shape table as text."""
    heads = ("layer", "output C x H x W", "stride", "rates", "parameters", "multiply-adds")
    lines = ["{:28} {:>18} {:>6} {:>10} {:>12} {:>16}".format(*heads)]
    for row in merged(shape_table(build(config), size)):
        shape = " x ".join(str(side) for side in row.shape)
        rates = ",".join(str(rate) for rate in row.rates) or "-"
        lines.append(
            f"{row.name:28} {shape:>18} {row.stride:>6} {rates:>10} "
            f"{row.parameters:>12,} {row.multiply_adds:>16,}"
        )
    return "\n".join(lines)


def report(result: Complexity) -> str:
    """The counts as text, component by component."""
    lines = [f"{'':10} {'multiply-adds':>22} {'logical':>22}"]
    for part, rounded in result.rounded.items():
        lines.append(f"{part:10} {rounded:>22,} {result.logical[part]:>22,}")
    total = f"{result.multiply_adds:>22,} {result.multiply_adds_logical:>22,}"
    lines.append(f"{'total':10} {total}")
    billions, millions = result.multiply_adds / 1e9, result.parameters / 1e6
    lines += [
        "",
        f"{billions:.2f} B multiply-adds by the paper's rule, {millions:.2f} M parameters",
    ]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.complexity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m model.complexity --backbone xception_65 --separable\n"
        "  python -m model.complexity --backbone resnet_v1_101_beta --output-stride 8 "
        "--scales 0.5,0.75,1,1.25,1.5,1.75 --flip --json\n"
        "  python -m model.complexity --backbone mobilenet_v2 --no-decoder --summary",
    )
    p.add_argument("--backbone", required=True, choices=get_args(BackboneName), metavar="B",
                   help=f"one of {', '.join(get_args(BackboneName))}")  # fmt: skip
    p.add_argument("--output-stride", type=int, default=16, choices=(8, 16, 32), help="default: 16")
    p.add_argument("--num-classes", type=int, default=21, metavar="N", help="default: 21")
    p.add_argument(
        "--no-decoder", dest="decoder", action="store_false", help="DeepLabv3, without the decoder"
    )
    p.add_argument(
        "--no-image-pooling",
        dest="image_pooling",
        action="store_false",
        help="without the ASPP's image-level feature",
    )
    p.add_argument(
        "--separable",
        action="store_true",
        help="depthwise separable convolutions in the ASPP and the decoder",
    )
    p.add_argument(
        "--depth-multiplier",
        type=float,
        default=1.0,
        metavar="X",
        help="width of MobileNetV2 (default: 1)",
    )
    arguments.add_rates(p, multi_grid="as published", atrous_rates="6,12,18")
    add_size(p)
    p.add_argument(
        "--scales",
        type=arguments.scales,
        default=(1.0,),
        metavar="S,...",
        help="sizes of the photo to predict (default: 1)",
    )
    p.add_argument("--flip", action="store_true", help="also predict the mirrored photo")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument(
        "--summary", action="store_true", help="print output shapes and costs block by block"
    )
    return p


def add_size(p: argparse.ArgumentParser) -> None:
    """Add the size of the photo that is counted or drawn."""
    p.add_argument(
        "--size",
        type=arguments.size,
        default=PAPER_SIZE,
        metavar="H,W",
        help="photo in pixels (default: 513,513)",
    )


def config_of(args: argparse.Namespace) -> ModelConfig:
    """The configuration that the options describe; raises ValidationError."""
    settings: dict[str, Any] = {
        **PUBLISHED[args.backbone],
        "backbone": args.backbone,
        "num_classes": args.num_classes,
        "output_stride": args.output_stride,
        "decoder": args.decoder,
        "image_pooling": args.image_pooling,
        "aspp_separable": args.separable,
        "decoder_separable": args.separable,
        "depth_multiplier": args.depth_multiplier,
    }
    for name in ("multi_grid", "atrous_rates"):
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    return ModelConfig.model_validate(settings)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        config = config_of(args)
    except ValidationError as error:
        print(f"error: {mistakes(error)}", file=sys.stderr)
        return 2
    result = measure(config, args.size, args.scales, flip=args.flip)
    if args.json:
        figures = {
            "multiply_adds": result.multiply_adds,
            "multiply_adds_logical": result.multiply_adds_logical,
            "parameters": result.parameters,
            "components": {
                part: {"multiply_adds": rounded, "multiply_adds_logical": result.logical[part]}
                for part, rounded in result.rounded.items()
            },
        }
        print(json.dumps(figures, indent=2))
        return 0
    if args.summary:
        print(summary(config, args.size), end="\n\n")
    print(report(result))
    return 0
