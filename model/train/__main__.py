"""Train DeepLabv3+ by the paper's protocol: `python -m model.train PRESET --data DIR`.

Section 4 of the paper: SGD with momentum, the poly policy, random scale, crop
and flip, cross-entropy on logits resized to the labels' size, void ignored.
Every random choice follows from the recipe's seed and the iteration, so a killed
run continued with --resume gives the result of an uninterrupted one.
"""

from __future__ import annotations

import argparse
import logging
from contextlib import closing, nullcontext
from pathlib import Path

from model import memory
from model.data.dataset import find
from model.data.photo_list import find_photos
from model.train import preflight, recipe
from model.train.board import TensorBoard
from model.train.command import add_overrides, add_run, command, run_folder
from model.train.distributed import World
from model.train.run import Pace, RunFolder
from model.train.training import Taught, train

log = logging.getLogger("model.train")


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
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.list:
        for name in recipe.presets():
            print(f"{name:34} {recipe.read(name, []).description}")
        print(f"\nThey lie in {recipe.PRESETS}. To change much, copy one instead of using --set.")
        return 0
    if args.recipe is None or args.data is None:
        p.error("give a recipe, --data DIR and --out DIR (or --resume DIR)")
    folder = run_folder(p, args)
    return command(lambda world: train_from(args, folder, world))


def train_from(args: argparse.Namespace, directory: Path, world: World) -> Path:
    """Read recipe and data, then train."""
    config = recipe.read(args.recipe, args.overrides)
    preflight.check(config, world)
    dataset = find(config.dataset, args.data, config.split)
    preflight.check_classes(config, dataset)
    preflight.check_taught(config, photos=args.photos, targets=args.targets)
    extra = Taught(find_photos(args.photos) if args.photos else (), args.targets)
    validated_on = None
    if config.validation_split is not None:
        validated_on = find(config.dataset, args.data, config.validation_split)
    world.from_main(lambda: preflight.check_masks(dataset, validated_on))
    preflight.check_folder(directory, resume=args.resume is not None)
    world.from_main(lambda: directory.mkdir(parents=True, exist_ok=True))
    preflight.log_start(config, dataset, recipe.path_of(args.recipe))
    preflight.log_rate(config)
    preflight.check_norm_momentum(config)
    board = TensorBoard(directory) if args.tensorboard and world.is_main else None
    with closing(board) if board else nullcontext():
        return train(
            config,
            dataset,
            RunFolder(directory, world, board),
            Pace(
                config.iterations,
                config.batch_size,
                args.save_every,
                args.log_every,
                config.max_skips,
            ),
            resume=args.resume is not None,
            workers=args.workers,
            validated_on=validated_on,
            extra=extra,
        )


def script() -> int:
    """The console script: `main` in a process that keeps freed memory."""
    memory.keep_freed_on_a_cpu()
    return main()


if __name__ == "__main__":
    raise SystemExit(script())
