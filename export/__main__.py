"""Export a checkpoint to one .onnx file: `python -m export CKPT -o FILE.onnx`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from pydantic import ValidationError

from export.options import options, size
from export.parity import ParityError
from export.quantize import QuantizationError
from export.writer import PolicyError, export
from model import arguments
from model.checkpoint import CheckpointError
from model.data.dataset import DATASETS, DatasetError
from model.pydantic_errors import mistakes

EXAMPLES = """\
examples:
  python -m export runs/light/model -o models/light.onnx
  python -m export runs/light/model -o models/light-os8.onnx --output-stride 8 --confidence
  python -m export runs/light/model -o models/light-ms.onnx --scales 0.5,0.75,1,1.25,1.5,1.75 --flip
  python -m export runs/light/model -o models/light-int8.onnx --precision int8 --data DATA
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a checkpoint to one .onnx file and compare it with PyTorch.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    p.add_argument(
        "checkpoint", type=Path, help="checkpoint: NAME of NAME.safetensors and NAME.json"
    )
    p.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.onnx", help="file to write"
    )
    arguments.add_passes(p)
    p.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="number format that the file computes in (default: fp32)",
    )
    p.add_argument(
        "--size",
        type=size,
        metavar="H,W|aligned|dynamic",
        help="size of the input in pixels (default: the checkpoint's crop size). aligned: one "
        "side of a photo is padded to the whole size, the other one less (to 5/8 at least), which "
        "is faster on a CPU; dynamic: the file takes any size",
    )
    _add_outputs(p)
    _add_measured_on(p)
    return p


def _add_outputs(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--confidence",
        action="store_true",
        help="also return the probability of each pixel's label",
    )
    p.add_argument(
        "--probabilities",
        action="store_true",
        help="also return the probabilities of all classes, at the network's own resolution",
    )
    p.add_argument(
        "--best-iou",
        type=Path,
        metavar="DIR",
        help="each pixel takes the class that maximises the expected IoU over photos like those of "
        "this folder (default: the most probable class)",
    )


def _add_measured_on(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("for --precision int8 and fp16")
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="photos that int8 ranges are measured on (default: the data set's train split)",
    )
    group.add_argument(
        "--dataset",
        choices=sorted(DATASETS),
        help=arguments.DATASET_HELP,
    )
    group.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="data set that mIoU is measured on; required for int8",
    )
    group.add_argument(
        "--split",
        default="val",
        help="part of the data set that mIoU is measured on (default: val)",
    )


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.output.is_dir():
        p.error(f"-o {args.output} is a folder: give the name of a file in it")
    # Errors only: the quantizer warns, through the root logger, of every channel without weights.
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.ERROR)
    logging.getLogger("export").setLevel(logging.INFO)
    try:
        contract = export(args.checkpoint, args.output, options(args))
    except (QuantizationError, DatasetError, PolicyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValidationError as error:
        print(f"error: {mistakes(error)}", file=sys.stderr)
        return 1
    except (CheckpointError, ParityError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parity = contract.parity
    change = "" if parity.miou_change is None else f", mIoU {parity.miou_change:+.4f}"
    print(
        f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, "
        f"{parity.agreement:.4%} of {parity.pixels} labels as PyTorch, "
        f"largest logit error {parity.max_logit_error:.2g} (std {parity.logit_std:.2g}){change}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
