"""Run the experiments of a study, skipping those already done.

Training and evaluation go through the command lines of model.train and
model.evaluate, so that each result names the commands that repeat it. A point
whose JSON exists is skipped; an interrupted training is resumed.
"""

from __future__ import annotations

import json
import logging
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from model import checkpoint, files
from model.evaluate import __main__ as evaluate
from model.paper.studies.plan import BUNDLED, BUNDLED_CHECKPOINT, MULTI_SCALE, Point
from model.train import __main__ as train
from model.train import training

log = logging.getLogger("model.studies")

STATE = "state.pt"  # of model.train: there is something to resume
WIDTHS = "1,2,5,10,20,40"  # of the trimap, pixels


class StudyError(RuntimeError):
    """A training or evaluation of a study failed; its own message has been printed."""


class StudySettings(NamedTuple):
    """The folders of the studies, and the lengths of their trainings."""

    data: Path
    out: Path
    overrides: tuple[str, ...] = ()  # of every recipe
    split: str = "val"
    workers: int = 0


def train_command(point: Point, settings: StudySettings) -> list[str]:
    """The arguments of model.train for a point's network."""
    overrides = (f"seed={point.seed}", *point.net.overrides, *settings.overrides)
    sets = [word for override in overrides for word in ("--set", override)]
    folder = settings.out / point.run
    place = "--resume" if (folder / STATE).exists() else "--out"
    return [point.net.preset, "--data", str(settings.data), place, str(folder), *sets]


def checkpoint_of(point: Point, settings: StudySettings) -> Path:
    """The path of a point's checkpoint."""
    return BUNDLED_CHECKPOINT if point.net == BUNDLED else settings.out / point.run / training.NAME


def judge_command(point: Point, settings: StudySettings) -> list[str]:
    """The arguments of model.evaluate for a point."""
    options = [
        *("--data", str(settings.data), "--split", settings.split),
        *("--output-stride", str(point.output_stride), "--trimap", WIDTHS, "--boundary"),
    ]
    if point.multi_scale:
        options += ["--scales", ",".join(f"{scale:g}" for scale in MULTI_SCALE)]
    if point.flip:
        options += ["--flip"]
    if point.photos is not None:
        options += ["--photos", str(point.photos)]
    return [str(checkpoint_of(point, settings)), *options]


def run(point: Point, settings: StudySettings) -> None:
    """Train and evaluate one point, skipping what is done; raises StudyError."""
    result = settings.out / f"{point.name}.json"
    if result.exists():
        log.info("%s is done", point.name)
        return
    source = checkpoint_of(point, settings)
    if not checkpoint.paths(source)[1].exists():
        arguments = train_command(point, settings)
        arguments += ["--workers", str(settings.workers)]
        log.info("training: python -m model.train %s", shlex.join(arguments))
        if train.main(arguments) != 0:
            raise StudyError(f"training {point.run} failed or was stopped; run this again")
    arguments = judge_command(point, settings)
    log.info("evaluating: python -m model.evaluate %s", shlex.join(arguments))
    with files.replacing(result) as partial:
        if evaluate.main([*arguments, "--json", str(partial)]) != 0:
            raise StudyError(f"the evaluation of {point.name} failed")
        label(partial, point, source)


def label(path: Path, point: Point, source: Path) -> None:
    """Write an evaluation's figures together with the point and network they belong to."""
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    training = checkpoint.read_card(source).training
    figures |= {"network": point.net.name, "seed": point.seed, "training": training}
    figures |= {"photos": point.photos, "measured": datetime.now(UTC).date().isoformat()}
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
