"""Repeat the paper's trainings and evaluations: `python -m model.reproduce voc --data DATA`.

voc         ImageNet weights -> COCO -> trainaug at output stride 16 -> mIoU on val at 16 and 8,
            with and without scales and mirrored photos -> trainval at 8 -> archive for the server
cityscapes  ImageNet weights -> fine masks -> mIoU on val -> coarse masks -> fine masks again
            -> archive for the server

Prepare the data sets first (`python -m model.data prepare voc` says how). All of it takes days
on several GPUs. Stages that are done are skipped and an interrupted training is resumed, so
give the same command again to go on. --plan shows the stages and what is left, --estimate
times a few iterations here and says how long each stage will take.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from model import arguments, memory
from model.checkpoint import CheckpointError
from model.data.dataset import DatasetError
from model.paper.reproduce import estimate
from model.paper.reproduce.plan import SEQUENCES, Evaluation, Stage, Submission, Training
from model.paper.reproduce.run import ReproduceError, Settings, check, is_done, miou, run
from model.train.options import add_overrides, add_workers
from model.train.recipe import RecipeError

log = logging.getLogger("model.reproduce")
REPORT = "report.md"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m model.reproduce voc --data DATA --out runs/paper --estimate\n"
        "  python -m model.reproduce voc --data DATA --out runs/paper --processes 8 --workers 4",
    )
    p.add_argument("sequence", choices=sorted(SEQUENCES), help="sequence of trainings to repeat")
    p.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of the data sets"
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for all results")
    p.add_argument(
        "--weights",
        type=Path,
        metavar="CKPT",
        help="ImageNet weights of the backbone (default: weights/xception65-imagenet, or 71)",
    )
    p.add_argument(
        "--imagenet", type=Path, metavar="DIR", help="first train these weights on ImageNet in DIR"
    )
    gpus = max(1, torch.cuda.device_count())
    p.add_argument(
        "--processes",
        type=arguments.positive,
        default=gpus,
        metavar="N",
        help=f"processes of each training, one per GPU (default on this machine: {gpus})",
    )
    add_workers(p, 1)
    fields = "Recipe in model/train/recipe.py"
    add_overrides(p, "iterations=100", fields, recipe="every recipe, for a trial")
    p.add_argument("--plan", action="store_true", help="list the stages, and exit")
    p.add_argument("--estimate", action="store_true", help="also say how long each will take")
    return p


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that a command line asks for."""
    sequence = SEQUENCES[args.sequence]
    return Settings(
        sequence,
        args.data,
        args.out,
        args.weights or Path(sequence.weights),
        args.imagenet,
        args.processes,
        args.workers,
        tuple(args.overrides),
    )


def plan(settings: Settings, left_out: list[Submission], device: torch.device | None) -> str:
    """The stages as lines; with a device, the hours of those that are left, timed on it."""
    lines, total = [], 0.0
    for stage in settings.sequence.stages:
        state = "done" if is_done(stage, settings) else "to do"
        if stage in left_out:
            state = "no photos"
        elif device is not None and state == "to do":
            hours = estimate.hours(stage, settings, device)
            total += hours
            state = f"about {hours:.1f} h"
        lines.append(f"{stage.name:28} {describe(stage, settings):48} {state}")
    if device is not None:
        lines.append(
            f"about {total:.0f} hours in all on {settings.processes} x {_name(device)}, without "
            "loading photos and the exchange between processes"
        )
    return "\n".join(lines)


def describe(stage: Stage, settings: Settings) -> str:
    """Describe a stage in a few words."""
    match stage:
        case Training():
            config = settings.recipe(stage)
            return f"{config.iterations} iterations of {config.batch_size}, {config.split}"
        case Evaluation():
            passes = ", six scales and flip" if stage.multi_scale else ""
            return f"mIoU on val, output stride {stage.output_stride}{passes}"
        case Submission():
            return f"archive for the test server, output stride {stage.output_stride}"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def report(settings: Settings) -> str:
    """Format the mIoU measured here beside the paper's, as Markdown."""
    rows = [
        f"| {stage.name} | {describe(stage, settings)} | {_percent(stage.published)} "
        f"| {_found(stage, settings)} |"
        for stage in settings.sequence.stages
        if not isinstance(stage, Training)
    ]
    changed = ", ".join(settings.overrides)
    return "\n".join(
        [
            f"# {settings.sequence.dataset}: the paper and this run",
            "",
            f"Recipes changed by: {changed}. The figures are not the paper's experiment."
            if changed
            else "Recipes as shipped; docs/training.md says where the paper leaves them open.",
            "",
            "| stage | what | paper (%) | here (%) |",
            "|---|---|---:|---:|",
            *rows,
            "",
        ]
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _found(stage: Stage, settings: Settings) -> str:
    match stage:
        case Evaluation() if is_done(stage, settings):
            return _percent(miou(stage, settings))
        case Submission() if is_done(stage, settings):
            return f"send {settings.archive(stage)}"
        case _:
            return "not done"


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    settings = settings_of(args)
    try:
        left_out = check(settings)
        if args.plan or args.estimate:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            print(plan(settings, left_out, device if args.estimate else None))
            return 0
        work(settings, left_out)
    except (ReproduceError, RecipeError, DatasetError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def work(settings: Settings, left_out: list[Submission]) -> None:
    """Run all stages in order; the report is rewritten after each evaluation."""
    settings.out.mkdir(parents=True, exist_ok=True)
    for stage in settings.sequence.stages:
        if stage in left_out:
            log.warning("%s: left out, --data has no photos of the test split", stage.name)
            continue
        run(stage, settings)
        if isinstance(stage, Evaluation) and stage.published is not None:
            found = miou(stage, settings)
            log.info("%s: mIoU %.2f %%, the paper's %.2f %%", stage.name, found, stage.published)
        (settings.out / REPORT).write_text(report(settings), encoding="utf-8")
    print(report(settings))


script = memory.keeping_freed(main)


if __name__ == "__main__":
    raise SystemExit(script())
