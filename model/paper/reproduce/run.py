"""Run a sequence stage by stage, each as a separate command; finished stages are skipped."""

from __future__ import annotations

import ctypes
import json
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from model import checkpoint, files
from model.data.dataset import DatasetError, find
from model.evaluate import submission
from model.paper.reproduce.plan import IMAGENET, Evaluation, Sequence, Stage, Submission, Training
from model.train import recipe, training
from model.train.recipe import Recipe
from model.train.run import STATE, differences

log = logging.getLogger("model.reproduce")

BACKBONE = "backbone"  # model.pretrain's name for its result
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
STOPS = (signal.SIGINT, signal.SIGTERM)


class ReproduceError(RuntimeError):
    """The sequence cannot begin, or a stage failed."""


@dataclass(frozen=True)
class Settings:
    """The folders of a sequence, its processes, and changes of its recipes."""

    sequence: Sequence
    data: Path
    out: Path
    weights: Path  # of the backbone, trained on ImageNet
    imagenet: Path | None = None  # train these weights first, on this folder
    processes: int = 1  # of each training
    workers: int = 1  # of each process
    overrides: tuple[str, ...] = ()  # of every recipe

    def result(self, name: str) -> Path:
        """The path of a training's checkpoint."""
        if name != IMAGENET:
            return self.out / name / training.NAME
        return self.weights if self.imagenet is None else self.out / IMAGENET / BACKBONE

    def recipe(self, stage: Training) -> Recipe:
        """A training's recipe; raises RecipeError."""
        return recipe.read(stage.preset, self.changes(stage))

    def changes(self, stage: Training) -> list[str]:
        """The changes to the preset's recipe."""
        return [f"init={self.result(stage.begins_with)}", *self.overrides]

    def figures(self, stage: Evaluation) -> Path:
        """The path of an evaluation's figures."""
        return self.out / f"{stage.name}.json"

    def archive(self, stage: Submission) -> Path:
        """The path of the archive for the test server."""
        return submission.archive(self.sequence.dataset, self.out / stage.name)


def is_done(stage: Stage, settings: Settings) -> bool:
    """Whether a stage's result exists, and was made with the present weights."""
    match stage:
        case Training():
            return all(path.exists() for path in checkpoint.paths(settings.result(stage.name)))
        case Evaluation():
            return settings.figures(stage).exists() and _has_present_weights(stage, settings)
        case Submission():
            return settings.archive(stage).exists() and _has_present_weights(stage, settings)


def _digest_file(stage: Evaluation | Submission, settings: Settings) -> Path:
    """The file with the digest of the weights that a stage's result was made with."""
    return settings.out / f"{stage.name}.sha256"


def _has_present_weights(stage: Evaluation | Submission, settings: Settings) -> bool:
    """Whether a result was made with the present weights: a training may have run again."""
    kept = _digest_file(stage, settings)
    return kept.exists() and kept.read_text(encoding="utf-8") == _digest(stage, settings)


def _digest(stage: Evaluation | Submission, settings: Settings) -> str:
    """The digest of the weights that a stage takes; empty if they are not trained yet."""
    path = settings.result(stage.of)
    if not all(file.exists() for file in checkpoint.paths(path)):
        return ""
    return checkpoint.read_card(path).weights_sha256 or ""


def check(settings: Settings) -> list[Submission]:
    """Look for all weights and data before anything is run; raises ReproduceError.

    Returns the submissions for which there are no photos: a test split may come later.
    """
    sequence = settings.sequence
    weights = settings.result(IMAGENET)
    if settings.imagenet is None and not all(path.exists() for path in checkpoint.paths(weights)):
        raise ReproduceError(
            f"{weights}.safetensors: no such file. These are the weights of {sequence.backbone}, "
            "trained on ImageNet: convert published ones (docs/published-weights.md), name them "
            "with --weights, or train them first with --imagenet DIR"
        )
    missing = []
    for stage in sequence.stages:
        if isinstance(stage, Training) and is_done(stage, settings):
            expect_same_recipe(stage, settings)
        try:
            match stage:
                case Training():
                    wanted = settings.recipe(stage)
                    find(wanted.dataset, settings.data, wanted.split)
                case Evaluation():
                    find(sequence.dataset, settings.data, "val")
                case Submission():
                    find(sequence.dataset, settings.data, "test")
        except DatasetError as error:
            if not isinstance(stage, Submission):
                raise ReproduceError(f"{stage.name}: {error}") from None
            missing.append(stage)
    return missing


def expect_same_recipe(stage: Training, settings: Settings) -> None:
    """Raise ReproduceError if a finished training had another recipe than this command gives it.

    Otherwise a trial with a few iterations would later pass for the paper's experiment.
    """
    path = settings.result(stage.name)
    card = checkpoint.read_card(path)
    now = settings.recipe(stage)
    found = Recipe.model_validate(card.training | {"model": card.model})
    # The paths of folders do not matter, but the ImageNet weights of the first stage do.
    same_start = _place_of(found.init) == _place_of(now.init)
    if same_start or stage.begins_with != IMAGENET:
        found = found.model_copy(update={"init": now.init})
    told = differences(found.model_dump(mode="json"), now.model_dump(mode="json"))
    if told:
        raise ReproduceError(
            f"{stage.name}: {path} was trained with another recipe: {told}; give the same --set "
            "and --weights as then, or another --out"
        )


def _place_of(init: str | None) -> Path | None:
    return None if init is None else Path(init).resolve()


def commands(stage: Stage, settings: Settings) -> list[list[str]]:
    """The command lines of a stage, after `python`."""
    match stage:
        case Training():
            return [*_pretraining(stage, settings), _training(stage, settings)]
        case Evaluation():
            return [_evaluation(stage, settings)]
        case Submission():
            return [_submission(stage, settings)]


def _pretraining(stage: Training, settings: Settings) -> list[list[str]]:
    weights = settings.result(IMAGENET)
    if stage.begins_with != IMAGENET or settings.imagenet is None:
        return []
    if all(path.exists() for path in checkpoint.paths(weights)):
        return []
    folder = weights.parent
    words = ["model.pretrain", settings.sequence.backbone, "--data", str(settings.imagenet)]
    return [_on_all(settings, [*words, *_place(folder), "--workers", str(settings.workers)])]


def _training(stage: Training, settings: Settings) -> list[str]:
    sets = [word for change in settings.changes(stage) for word in ("--set", change)]
    words = ["model.train", stage.preset, "--data", str(settings.data)]
    words += [*_place(settings.out / stage.name), "--workers", str(settings.workers), *sets]
    return _on_all(settings, words)


def _place(folder: Path) -> list[str]:
    """Return --resume for a run that has a state, and --out for a new one."""
    return ["--resume" if (folder / STATE).exists() else "--out", str(folder)]


def _on_all(settings: Settings, words: list[str]) -> list[str]:
    if settings.processes == 1:
        return ["-m", *words]
    count = str(settings.processes)
    return ["-m", "torch.distributed.run", "--nproc-per-node", count, "-m", *words]


def _evaluation(stage: Evaluation, settings: Settings) -> list[str]:
    words = ["-m", "model.evaluate", str(settings.result(stage.of)), "--data", str(settings.data)]
    words += ["--dataset", settings.sequence.dataset, "--split", "val", "--whole"]
    return [*words, *_passes(stage.output_stride, stage.scales), "--json"]


def _submission(stage: Submission, settings: Settings) -> list[str]:
    words = ["-m", "model.predict", str(settings.result(stage.of)), "--data", str(settings.data)]
    words += ["--submission", settings.sequence.dataset, "--split", "test", "--whole"]
    scales = Evaluation(stage.of, stage.output_stride, multi_scale=True).scales
    passes = _passes(stage.output_stride, scales)
    return [*words, *passes, "-o", str(settings.out / stage.name)]


def _passes(output_stride: int, scales: tuple[float, ...]) -> list[str]:
    words = ["--output-stride", str(output_stride)]
    if len(scales) > 1:
        words += ["--scales", ",".join(f"{scale:g}" for scale in scales), "--flip"]
    return words


def run(stage: Stage, settings: Settings) -> None:
    """Run a stage, unless its result is there; raises ReproduceError."""
    if is_done(stage, settings):
        log.info("%s: done before", stage.name)
        return
    for words in commands(stage, settings):
        if isinstance(stage, Evaluation):
            # Under its own name only when it is complete: that is how a stage counts as done.
            with files.replacing(settings.figures(stage)) as partial:
                call(stage.name, [*words, str(partial)])
        else:
            call(stage.name, words)
    if not isinstance(stage, Training):
        digest = _digest(stage, settings).encode()
        files.write({_digest_file(stage, settings): digest})


def call(name: str, words: list[str]) -> None:
    """Run `python WORDS`; raises ReproduceError when it fails or is stopped.

    A signal is passed on to the command, which saves its state; only then does this process end. If
    this process is killed, the command gets SIGTERM from the system, and ends as well.
    """
    log.info("%s: python %s", name, shlex.join(words))
    python = [sys.executable, *words]
    with (
        # This process has no other threads, which could make the function unsafe.
        subprocess.Popen(python, preexec_fn=_end_with_parent) as process,  # noqa: PLW1509 - see above
        _handing_on(process) as signals,
    ):
        code = process.wait()
    if signals:
        raise ReproduceError(f"{name} was stopped; give the same command again to continue")
    if code != 0:
        raise ReproduceError(
            f"{name} failed, see above (exit code {code}); give the same command again to retry"
        )


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when the one that started it has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _handing_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass signals on to a process; yields the list of those received."""
    came: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        # A terminal sends Ctrl-C to the whole group, so the process has it already.
        if number == signal.SIGTERM:
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in STOPS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def miou(stage: Evaluation, settings: Settings) -> float:
    """The mIoU that an evaluation found, in percent."""
    figures = json.loads(settings.figures(stage).read_text(encoding="utf-8"))
    return 100 * float(figures["miou"])
