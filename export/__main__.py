"""`python -m export CKPT -o FILE.onnx`: one self-contained file per operating point."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from export.parity import ParityError
from export.writer import ExportOptions, export
from model.checkpoint import CheckpointError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a checkpoint to ONNX and prove it equal to PyTorch.",
        epilog="example: python -m export runs/light/model -o models/light.onnx --output-stride 8",
    )
    p.add_argument("checkpoint", type=Path, help="NAME.safetensors with NAME.json beside it")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.onnx")
    p.add_argument("--output-stride", type=int, choices=(8, 16, 32), help="default: as trained")
    p.add_argument("--size", type=size, metavar="H,W", help="default: the checkpoint's crop size")
    return p


def size(text: str) -> tuple[int, int]:
    """Parse H,W in pixels."""
    try:
        height, width = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write H,W as in 513,513") from None
    if min(height, width) < 33:
        raise argparse.ArgumentTypeError(f"{text!r}: both sides must be at least 33")
    return height, width


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        contract = export(
            args.checkpoint, args.output, ExportOptions(args.output_stride, args.size)
        )
    except (CheckpointError, ParityError, ValidationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parity = contract.parity
    print(
        f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, "
        f"{parity.agreement:.4%} of {parity.pixels} labels as PyTorch, "
        f"largest logit error {parity.max_logit_error:.2g} (std {parity.logit_std:.2g})"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
