"""Convert published weights: `python -m model.convert {tf,timm,torchvision} SRC DST`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from model import arguments, checkpoint
from model.convert import from_tensorflow, from_timm, from_torchvision, labels
from model.convert.accounting import Converted, ConvertError, summary
from model.pydantic_errors import mistakes

EXAMPLES = """examples:
  python -m model.convert tf deeplabv3_pascal_train_aug/model.ckpt weights/xception65-voc
  python -m model.convert tf deeplabv3_mnv2_pascal_quant.tflite weights/mobilenetv2-voc
  python -m model.convert tf variables.npz weights/resnet101 --output-stride 8 --multi-grid 1,2,4
  python -m model.convert torchvision deeplabv3_resnet101.pth weights/torchvision-r101
  python -m model.convert timm xception65.safetensors weights/xception65-imagenet

A network with a head becomes a checkpoint (DST.safetensors + DST.json) for
model.predict, model.evaluate and export. Weights of a backbone alone become a file
that model.train starts from: --set init=DST.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.convert",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = p.add_subparsers(dest="kind", required=True, metavar="{tf,timm,torchvision}")
    tf = kinds.add_parser(
        "tf",
        help="models of tensorflow/models, research/deeplab",
        description="Convert a model of tensorflow/models, research/deeplab.",
    )
    tf.add_argument(
        "src", type=Path, help="prefix of a checkpoint, .pb, .tflite, or .npz of variables"
    )
    torchvision = kinds.add_parser(
        "torchvision",
        help="ResNets, MobileNetV3-Large, and DeepLabv3 on them",
        description="Convert a ResNet or deeplabv3_resnet50/101 of torchvision.",
    )
    timm = kinds.add_parser(
        "timm",
        help="xception65/71, resnet50/101, tf_efficientnet_lite0/1/2",
        description="Convert xception65/71, resnet50/101 or tf_efficientnet_lite0/1/2 of timm.",
    )
    for state_dict in (torchvision, timm):
        state_dict.add_argument("src", type=Path, help="state dict: .pth or .safetensors")
    for kind in (tf, torchvision, timm):
        kind.add_argument("dst", type=Path, help="result: NAME of NAME.safetensors and NAME.json")
    for kind, stride, said in ((tf, 16, "16"), (torchvision, None, "8, on MobileNetV3 16")):
        kind.add_argument(
            "--output-stride",
            type=int,
            choices=(8, 16, 32),
            default=stride,
            help=f"default: {said}",
        )
        kind.add_argument(
            "--crop-size",
            type=arguments.size,
            default=(513, 513),
            metavar="H,W",
            help="crop size of the training (default: 513,513)",
        )
        kind.add_argument(
            "--classes",
            metavar="SET",
            help="class names: voc, cityscapes, ade20k or a file with a line `name [R G B]` per "
            "class (default: guessed from the number of classes)",
        )
    arguments.add_rates(
        tf,
        multi_grid="1,2,4 for ResNet, else 1,1,1",
        atrous_rates="6,12,18, or none in a network without atrous branches",
    )
    return p


def convert(args: argparse.Namespace) -> Converted:
    """Run the converter that the command line names; raises ConvertError."""
    if args.kind == "timm":
        return from_timm.convert(args.src)
    named = labels.read(args.classes) if args.classes else None
    if args.kind == "torchvision":
        return from_torchvision.convert(
            args.src, output_stride=args.output_stride, crop_size=args.crop_size, labels=named
        )
    options = from_tensorflow.ConversionOptions(
        output_stride=args.output_stride,
        crop_size=args.crop_size,
        multi_grid=args.multi_grid,
        atrous_rates=args.atrous_rates,
        labels=named,
    )
    return from_tensorflow.convert(args.src, options)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        converted = convert(args)
        path = checkpoint.save(args.dst, *converted)
    except ValidationError as error:
        print(f"error: {mistakes(error)}", file=sys.stderr)
        return 2
    except (ConvertError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary(converted))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
