"""Measure the speed of training: `make bench-train`.

Compares our loop with those of segmentation_models_pytorch and of torchvision's reference, with
the same backbone and head at the same crop, batch and precision and with random weights. Compare
the ratio; crops per second depend on the machine. Then shows where the time of an iteration goes,
and the share of time that the loop waits for its loader. --variants compares channels
last, bfloat16 and torch.compile with plain float32 instead, in speed and in result.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from model import memory
from model.bench.contest import compare
from model.bench.phases import loader_ms, phases, waiting
from model.bench.sides import CONTESTS, this_machine
from model.bench.variants import compare_variants, show_variants
from model.train.distributed import World


def show(result: dict[str, Any]) -> str:
    """A table to read."""
    rows = [
        f"{row['net']:13} ours {row['ours_crops_per_second']:8.2f} crops/s   "
        f"theirs {row['theirs_crops_per_second']:8.2f} crops/s   ratio {row['ratio']:.2f}   "
        f"parameters {row['ours_parameters']:,} and {row['theirs_parameters']:,}   "
        f"({row['rival']})"
        for row in result["nets"]
    ]
    whole = sum(result["phases_ms"].values())
    parts = ", ".join(f"{name} {ms / whole:.0%}" for name, ms in result["phases_ms"].items())
    rows.append(f"an iteration of light, {whole:.0f} ms: {parts}")
    rows.append(f"a loader process makes a crop in {result['loader_ms']:.1f} ms")
    wait = f"waiting for data {result['waiting']:.1%} of the time, {result['workers']} workers"
    return "\n".join([*rows, wait])


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m model.bench --nets light,light-loop --precision bf16\n"
        "  python -m model.bench --variants",
    )
    p.add_argument(
        "--nets",
        default=",".join(CONTESTS),
        help=f"comparisons, from {', '.join(CONTESTS)} (default: all)",
    )
    p.add_argument(
        "--variants",
        action="store_true",
        help="compare channels last, bfloat16 and torch.compile with plain float32 instead",
    )
    p.add_argument(
        "--crop", type=int, default=256, help="crop size in pixels, a multiple of 16 (default: 256)"
    )
    p.add_argument("--batch", type=int, default=8, help="crops per iteration (default: 8)")
    p.add_argument(
        "--iterations",
        type=int,
        default=5,
        help="iterations of each, after a first one (default: 5)",
    )
    p.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="number format of both (default: fp32)",
    )
    p.add_argument("--compile", action="store_true", help="run our network with torch.compile")
    p.add_argument("--workers", type=int, default=1, help="processes that read photos (default: 1)")
    p.add_argument("--json", action="store_true", help="print the figures as JSON")
    return p


def contests(names: list[str], args: argparse.Namespace, world: World) -> dict[str, Any]:
    """The figures of all comparisons."""
    return {
        **conditions(args, world),
        "precision": args.precision,
        "nets": [compare(name, args) for name in names],
        "phases_ms": phases(args, world),
        "loader_ms": loader_ms(args),
        "waiting": round(waiting(args, world), 4),
        "workers": args.workers,
    }


def conditions(args: argparse.Namespace, world: World) -> dict[str, Any]:
    """The conditions that the figures depend on."""
    return {
        "device": str(world.device),
        "threads": torch.get_num_threads(),
        "crop": args.crop,
        "batch": args.batch,
    }


def main(argv: list[str] | None = None) -> int:
    """0, or 1 where a variant's result is out of its bounds; 2 for wrong usage."""
    p = parser()
    args = p.parse_args(argv)
    names = args.nets.split(",")
    if unknown := [name for name in names if name not in CONTESTS]:
        p.error(f"--nets {unknown[0]}: choose from {', '.join(CONTESTS)}")
    world = this_machine()
    if args.precision == "fp16" and world.device.type != "cuda":
        p.error("--precision fp16 needs a CUDA device")
    if args.variants:
        rows = compare_variants(args, world)
        result = {**conditions(args, world), "variants": rows}
        print(json.dumps(result, indent=2) if args.json else show_variants(rows))
        return int(not all(row["equal"] for row in rows))
    result = contests(names, args, world)
    print(json.dumps(result, indent=2) if args.json else show(result))
    return 0


if __name__ == "__main__":
    memory.keep_freed_on_a_cpu()
    sys.exit(main())
