"""Train DeepLabv3+ by the paper's protocol: `python -m model.train PRESET --data DIR`.

Section 4 of the paper: SGD with momentum, the poly policy, random scale, crop
and flip, cross-entropy on logits resized to the labels' size, void ignored.
Every random choice follows from the recipe's seed and the iteration, so a killed
run continued with --resume gives the result of an uninterrupted one.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from model.train import recipe
from model.train.options import add_overrides, add_run, run_folder


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m model.train efficientnet-lite0-voc --data DATA --out runs/light\n"
        "  python -m model.train efficientnet-lite0-voc --data DATA --resume runs/light\n"
        "  torchrun --nproc-per-node 8 -m model.train xception65-voc --data DATA --out runs/voc",
    )
    p.add_argument("recipe", nargs="?", help="name of a preset (see --list) or a TOML file")
    p.add_argument("--list", action="store_true", help="list the presets and exit")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set")
    p.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="photos without labels, for recipes with `unlabelled`: a folder, or a text file "
        "that lists them",
    )
    p.add_argument(
        "--targets",
        type=Path,
        metavar="DIR",
        help="let the recipe's teachers predict every photo once, and keep their answers in DIR",
    )
    add_run(p, "checkpoint", workers=1, save_every=100)
    add_overrides(p, "model.output_stride=8", "Recipe in model/train/recipe.py")
    p.add_argument(
        "--tensorboard", action="store_true", help="also draw curves and overlays for TensorBoard"
    )
    p.add_argument(
        "--mlflow", action="store_true", help="also send them to MLflow, at MLFLOW_TRACKING_URI"
    )
    p.add_argument(
        "--wandb",
        action="store_true",
        help="also send them to Weights & Biases; WANDB_MODE=offline keeps them on disk",
    )
    return p


def main(argv: list[str] | None = None, *, keep_memory: bool = False) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.list:
        for name in recipe.presets():
            print(f"{name:34} {recipe.read(name, []).description}")
        print(f"\nThey lie in {recipe.PRESETS}. To change much, copy one instead of using --set.")
        return 0
    if args.recipe is None or args.data is None:
        p.error("give a recipe, --data DIR, and --out DIR or --resume DIR")
    folder = run_folder(p, args)
    if os.environ.get("RANK", "0") == "0":  # set by torchrun; 0, or none, for the first process
        print("loading PyTorch", file=sys.stderr, flush=True)
    from model import memory  # noqa: PLC0415 - takes seconds, in silence if it were above
    from model.train import session  # noqa: PLC0415 - as above

    if keep_memory:
        memory.keep_freed_on_a_cpu()
    return session.command_line(args, folder)


def script() -> int:
    """The console script: `main` in a process that keeps freed memory."""
    return main(keep_memory=True)


if __name__ == "__main__":
    raise SystemExit(script())
