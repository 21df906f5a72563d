"""Make a served model from labels: `python -m model.start LABELS -o DIR [--go]`.

LABELS is a data set, or a label tool's file or folder. The command checks it, reports what is
wrong with the labels, and proposes a training for this machine. With --go it also imports,
trains, evaluates, reports and exports, and prints the command that serves the model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model import memory
from model.data.check import check
from model.data.dataset import DatasetError, find
from model.data.exchange.command import names, pairs
from model.data.exchange.importing import RECORD, write
from model.data.exchange.plan import Wish, make_plan
from model.data.folder import DESCRIPTION
from model.data.report import Report
from model.start.proposal import Proposal, propose
from model.start.source import known_set, photos_of, tool

RECIPE, SUMMARY = "recipe.toml", "start.json"
LESS_MEMORY = (
    "end other programs, or train by a recipe with a smaller batch_size or augment.crop "
    "(docs/training.md)"
)


@dataclass(frozen=True)
class Found:
    """A data set to train on."""

    kind: str
    root: Path
    split: str  # to train on
    judged: str | None  # to evaluate on; None: no such split


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m model.start export.json --images photos -o runs/mine\n"
        "  python -m model.start export.json --images photos -o runs/mine --go --minutes 20",
    )
    add = p.add_argument
    add(
        "labels",
        type=Path,
        metavar="LABELS",
        help="data set, or labels as a label tool exports them",
    )
    add(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for data, run and model",
    )
    add("--images", type=Path, metavar="PHOTOS", help="folder of the photos of a tool's labels")
    add("--classes", type=names, default=(), metavar="A,B", help="only these labels, in this order")
    add(
        "--map",
        type=pairs,
        default={},
        metavar="A=B,C=B",
        help="rename labels, or merge several into one class",
    )
    add(
        "--group-by",
        default="none",
        metavar="HOW",
        help="keep photos in one split, as for `model.data import` (default: none)",
    )
    add(
        "--minutes",
        type=minutes,
        default=60.0,
        metavar="M",
        help="most minutes to train (default: 60)",
    )
    add("--go", action="store_true", help="carry out all steps instead of only proposing them")
    return p


def minutes(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
    return value


def expect_folder(out: Path) -> None:
    """Raise OSError now, and not after the measurements, if the results cannot be written."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"-o {out}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"-o {out}: {there} may not be written")


def main(argv: list[str] | None = None) -> int:
    """0 if everything could be done, 1 if a step failed, 2 for labels that cannot be used."""
    args = parser().parse_args(argv)
    try:
        expect_folder(args.out)
        found = prepared(args)
        report = check(find(found.kind, found.root, found.split))
        print(report.to_text())
        if not report.usable:
            print("first correct what the verdict names; docs/data.md says how", file=sys.stderr)
            return 2
        with memory.advising(LESS_MEMORY):
            proposal = propose(report, args.minutes)
    except (DatasetError, memory.ShortageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(proposal.lines()))
    if found.judged is None:
        print("no split val or test: the model will not be evaluated; hold some photos out as val")
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = args.out / RECIPE
    recipe.write_text(proposal.recipe(), encoding="utf-8")
    print(f"wrote {recipe}")
    steps = commands(found, args.out)
    if not args.go:
        print("to carry this out, add --go, or run:")
        print("\n".join(f"  {shown(step)}" for step in steps))
        return 0
    return carry_out(steps, found, report, proposal, args.out)


def prepared(args: argparse.Namespace) -> Found:
    """Return the data set itself, or import a tool's files into one. Raises DatasetError."""
    kind = known_set(args.labels)
    if kind is not None:
        print(f"{args.labels} is a data set: {kind}")
        return Found(kind, args.labels, "train", _judged(kind, args.labels))
    target = args.out / "data"
    kind = tool(args.labels)
    if (target / DESCRIPTION).is_file():
        expect_same(target, args)
        print(f"{target} was imported before; delete it to import again")
        return Found("folder", target, "train", _judged("folder", target))
    images = args.images or photos_of(args.labels)
    print(f"{args.labels} holds labels of {kind}; photos are taken from {images}")
    wish = Wish(
        kind,
        args.labels,
        images,
        target,
        classes=args.classes,
        map=args.map,
        group_by=args.group_by,
    )
    plan = make_plan(wish)
    print(plan.to_text())
    if not plan.items:
        raise DatasetError(f"no photo of {args.labels} can be used")
    print("\n".join(write(plan)))
    return Found("folder", target, "train", _judged("folder", target))


def expect_same(target: Path, args: argparse.Namespace) -> None:
    """Raise DatasetError if a folder was imported from other labels than are named now."""
    record = target / RECORD
    before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    labels = before.get("labels")
    if labels is not None and Path(labels).absolute() != args.labels.absolute():
        raise DatasetError(
            f"{target} was imported from {labels}, not from {args.labels}: give another -o, or "
            "delete that folder"
        )


def _judged(kind: str, root: Path) -> str | None:
    """Return the split to evaluate on, if there is one."""
    for split in ("val", "test"):
        try:
            if find(kind, root, split).pairs:
                return split
        except DatasetError:
            continue
    return None


def commands(found: Found, out: Path) -> list[list[str]]:
    """Return the steps after the proposal, each a module and its arguments."""
    run, model = out / "run", str(out / "run" / "model")
    data = ["--data", str(found.root)]
    steps = [["model.train", str(out / RECIPE), *data, "--out", str(run)]]
    if found.judged is not None:
        split = ["--dataset", found.kind, "--split", found.judged]
        result = str(out / "evaluation.json")
        steps.append(["model.evaluate", model, *data, *split, "--json", result])
        steps.append(["model.report", str(run), *data, *split])
    steps.append(["export", model, "-o", str(out / "models" / f"{out.resolve().name}.onnx")])
    return steps


def shown(step: Sequence[str]) -> str:
    """Write a step as a command line."""
    return f"python -m {shlex.join(step)}"


def carry_out(
    steps: Sequence[Sequence[str]], found: Found, report: Report, proposal: Proposal, out: Path
) -> int:
    """Run the steps; stop at the first one that fails."""
    (out / "models").mkdir(parents=True, exist_ok=True)
    for step in steps:
        print(f"$ {shown(step)}", flush=True)
        done = subprocess.run([sys.executable, "-m", *step], check=False)
        if done.returncode:
            print(f"error: this step ended with exit code {done.returncode}", file=sys.stderr)
            return 1
    summary = {
        "photos": len(report.dataset.pairs),
        "classes": list(report.dataset.classes),
        "iterations": proposal.iterations,
        "judged_on": found.judged,
    }
    result = out / "evaluation.json"
    if found.judged is not None and result.is_file():
        summary["miou"] = json.loads(result.read_text(encoding="utf-8"))["miou"]
        print(f"mIoU on {found.judged}: {summary['miou']:.3f}; see {out / 'run' / 'report.html'}")
    (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"to serve it: python -m service --models {shlex.quote(str(out / 'models'))}")
    return 0
