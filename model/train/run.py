"""A training run: its state and log on disk, and the loop over its iterations.

A run can be resumed after kill -9 at any moment: the state is replaced in one step and
never with weights that are not finite, and on resuming the log is cut back to the state.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model import files, memory
from model.data.dataset import DatasetError
from model.data.loader import Batch, StillLoading
from model.train import STARTED
from model.train.distributed import World, is_lost_peer
from model.train.recipe import LOG_EVERY

if TYPE_CHECKING:
    from model.train.board import Board
    from model.train.distillation import Hints

log = logging.getLogger("model.train")

HINTS = "hints"  # name of the maps to the teachers' features in a network that is trained
STATE = "state.pt"
LOG = "log.jsonl"
FIRST_LINE_S = 8.0  # after the start of the process, its imports included
ENOUGH_TO_ESTIMATE = 5  # iterations


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


@dataclass
class Run:
    """Everything that a resumed run needs, and the network that the loop calls."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    module: nn.Module  # `net`, with the gradients' averaging around it where there are processes
    average: dict[str, Tensor] | None = None
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler(enabled=False)
    )
    iteration: int = 0
    photos: int = 0  # of the training set, to notice another one on resuming
    skipped: int = 0  # samples replaced because their files are damaged
    best: dict[str, Any] = field(default_factory=dict)  # of the validations so far
    recipe: dict[str, Any] = field(default_factory=dict)  # to notice another one on resuming
    hints: Hints | None = None  # part of `net`

    def state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
            "photos": self.photos,
            "skipped": self.skipped,
            "best": self.best,
            "recipe": self.recipe,
        }

    def weights(self) -> dict[str, Tensor]:
        """The state dict to keep: the averaged weights if the run averages."""
        weights = self.average or self.net.state_dict()
        return {key: value for key, value in weights.items() if not key.startswith(f"{HINTS}.")}


def save_state(run: Run, directory: Path) -> None:
    """Write the state for --resume, atomically.

    Raises TrainingError, and keeps the previous state, if the disk is full or a
    weight is not finite.
    """
    expect_finite(run, directory)
    state = run.state()
    try:
        # Serialise to memory first: torch's own writer hides why a file cannot be written.
        content = io.BytesIO()
        torch.save(state, content)
        with files.replacing(directory / STATE) as partial:
            partial.write_bytes(content.getbuffer())
    except OSError as error:
        raise TrainingError(
            f"the state after iteration {run.iteration} cannot be written: {error}; make room and "
            f"continue with --resume {directory} in place of --out; {kept(directory)}"
        ) from error


def expect_finite(run: Run, directory: Path) -> None:
    """Raise TrainingError if a weight is not finite; the last step's loss cannot show that."""
    broken = [key for key, value in run.net.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise TrainingError(
            f"{broken[0]} is not finite after iteration {run.iteration} and was not saved: lower "
            f"learning_rate or set grad_clip; {kept(directory)}"
        )


def kept(directory: Path) -> str:
    """Describe the state from which a stopped run can continue."""
    path = directory / STATE
    if not path.exists():
        return "no earlier state was kept"
    return f"the state after iteration {read_state(directory)['iteration']} is intact"


def read_state(directory: Path) -> dict[str, Any]:
    """Read the state that `save_state` wrote, to the CPU; raises TrainingError if damaged."""
    try:
        state = torch.load(directory / STATE, weights_only=True, map_location="cpu")
        if not isinstance(state, dict) or "iteration" not in state:
            raise ValueError("it is not the state of a training")
        return state
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"{directory / STATE} cannot be read: {str(error).split('. ')[0]}; "
            "start again in another folder"
        ) from error


def restore(run: Run, directory: Path) -> None:
    """Load the state that `save_state` wrote; learning rates and decay come from the recipe.

    Raises TrainingError if the state is damaged or belongs to another network or optimizer.
    """
    state = read_state(directory)
    changes = differences(state.get("recipe") or run.recipe, run.recipe)
    try:
        _load(run, state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{directory / STATE} does not fit this recipe"
            + (f": {changes}" if changes else f" ({str(error).splitlines()[0]})")
            + "; resume with the recipe that the run began with"
        ) from error
    if changes:
        log.warning("resumed with another recipe than the run began with: %s", changes)
    before = state.get("photos", 0)
    if before and before != run.photos:
        log.warning(
            "the training set has %d photos, %d when the run was last saved: from here on the "
            "samples come in another order",
            run.photos,
            before,
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The keys in which two recipes differ, with both values; empty if they are equal."""
    old, new = (dict(flat(recipe)) for recipe in (before, now))
    return ", ".join(
        f"{key}={value!r} (before: {old.get(key)!r})"
        for key, value in new.items()
        if value != old.get(key) and key != "description"
    )


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, as --set takes them."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _load(run: Run, state: Mapping[str, Any]) -> None:
    run.net.load_state_dict(state["net"])
    groups = (run.optimizer.param_groups, state["optimizer"]["param_groups"])
    if len({"betas" in group for part in groups for group in part}) > 1:  # AdamW's
        raise ValueError("the state is that of another optimizer")
    settings: list[dict[str, Any]] = [
        {key: group[key] for key in ("rate", "weight_decay", "momentum", "betas") if key in group}
        for group in run.optimizer.param_groups
    ]
    run.optimizer.load_state_dict(state["optimizer"])
    for group, chosen in zip(run.optimizer.param_groups, settings, strict=True):
        group.update(chosen)
    if state["average"] is not None:
        device = next(run.net.parameters()).device
        run.average = {key: value.to(device) for key, value in state["average"].items()}
    elif run.average is not None:  # averaging begins here
        run.average = {key: value.clone() for key, value in run.net.state_dict().items()}
    run.iteration = state["iteration"]
    # States of earlier versions have none of these.
    if state.get("scaler"):
        run.scaler.load_state_dict(state["scaler"])
    run.skipped = state.get("skipped", 0)
    run.best = state.get("best", {})


class RunFolder:
    """The files of a run; only the main process writes."""

    def __init__(self, path: Path, world: World, board: Board | None = None) -> None:
        self.path = path
        self.world = world
        self.board = board

    def save(self, run: Run) -> None:
        """Write the state; if that fails, all processes raise the same error."""
        self.world.from_main(lambda: save_state(run, self.path))

    def resume(self, run: Run) -> None:
        """Load the state, if there is one yet."""
        if (self.path / STATE).exists():
            restore(run, self.path)
            log.info("resumed at iteration %d", run.iteration)
        else:
            log.info("%s holds no state yet: starting at iteration 0", self.path)

    def forget_validation(self, iteration: int) -> None:
        """Drop the line of a validation that is about to be done again."""

        def other(line: str) -> bool:
            return "miou" not in json.loads(line) or json.loads(line)["iteration"] < iteration

        self.world.from_main(lambda: rewind(self.path / LOG, iteration, other))

    def write(self, iteration: int, **values: Any) -> None:
        """Append a line to the log, show it, and draw its numbers."""
        if not self.world.is_main:
            return
        self._append(json.dumps({"iteration": iteration, **values}) + "\n")
        if self.board is not None:
            self.board.scalars(iteration, values)
        text = "  ".join(f"{key} {v}" for key, v in values.items() if not isinstance(v, dict))
        if not sys.stderr.isatty():
            log.info("iteration %d  %s", iteration, text)
        elif "loss" not in values:  # which the progress bar shows
            tqdm.write(f"iteration {iteration}  {text}", file=sys.stderr)

    def _append(self, line: str) -> None:
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise TrainingError(
                f"{self.path / LOG} cannot be written: {error}; make room and continue with "
                f"--resume {self.path}; {kept(self.path)}"
            ) from error


def rewind(path: Path, iteration: int, keep: Callable[[str], bool] = lambda _: True) -> None:
    """Drop the lines of a log after `iteration`, and those that `keep` denies.

    The resumed run writes them again.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept_lines = (f"{line}\n" for line in lines if _is_at_most(line, iteration) and keep(line))
    with files.replacing(path) as partial:
        partial.write_text("".join(kept_lines), encoding="utf-8")


def _is_at_most(line: str, iteration: int) -> bool:
    try:
        return bool(json.loads(line)["iteration"] <= iteration)
    except (ValueError, KeyError):  # cut off in the middle of writing
        return False


SECOND_SIGNAL_S = 3.0  # torchrun repeats a terminal's Ctrl-C at once: that is one signal


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal arrived: the current iteration is abandoned."""


class WaitStopped(BaseException):
    """A signal arrived while waiting for a batch. Not an Exception: no reader may catch it."""


class StopSignals:
    """Context: SIGTERM and SIGINT let the current iteration finish and be saved.

    A second one, seconds later, raises StoppedAtOnce, because the iteration may hang.
    """

    def __init__(self) -> None:
        self.received = False
        self.waiting = False  # for a batch: the signal raises WaitStopped
        self.at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, RuntimeError) and is_lost_peer(error):
            # torchrun ends this process too, at once: it first has to say why and where to go on.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _note(self, *_: object) -> None:
        now = time.monotonic()
        if self.received and now - self.at > SECOND_SIGNAL_S:
            raise StoppedAtOnce
        if not self.received:
            self.received, self.at = True, now
            if self.waiting:
                self.waiting = False
                raise WaitStopped


@dataclass(frozen=True)
class Pace:
    """How long a run is and how often it saves and logs, in iterations."""

    stop: int
    batch: int  # samples per iteration, of all processes
    save_every: int = 100
    log_every: int = LOG_EVERY
    max_skips: int = 0


Weigh = Callable[[Batch], float]
Step = Callable[[Batch, float], float]


def loop(
    run: Run,
    batches: Iterator[Batch],
    pace: Pace,
    folder: RunFolder,
    *,
    weigh: Weigh,
    step: Step,
    after: Callable[[], bool] = lambda: False,
) -> None:
    """Train until `pace.stop`, or until `after`, called after each iteration, returns true.

    `step` takes a batch and the weight of the global batch: the sum of `weigh` over all
    processes. The state is saved at regular iterations, at a signal and at the end.
    Raises TrainingError for signals and damaged files.
    """
    folder.world.from_main(lambda: rewind(folder.path / LOG, run.iteration))
    shown = folder.world.is_main and sys.stderr.isatty()
    bar = tqdm(initial=run.iteration, total=pace.stop, disable=not shown)
    meter = Meter(pace.batch)
    first = FirstLine(run.iteration, pace.stop, shown=folder.world.is_main)
    with StopSignals() as signals, bar, first:
        while run.iteration < pace.stop:
            meter.loading()
            batch, weight = fetch(run, batches, pace, folder, weigh=weigh, signals=signals)
            meter.loaded()
            with memory_advice(folder.path):
                meter.add(step(batch, weight))
            bar.update()
            first.tell(run.iteration)
            if run.iteration % pace.log_every == 0 or run.iteration == pace.stop:
                _log_losses(run, meter, folder, bar)
            with memory_advice(folder.path, WHILE_JUDGING):
                is_over = after()
            if is_over:
                if meter.losses:
                    _log_losses(run, meter, folder, bar)
                break
            if run.iteration % pace.save_every == 0:
                folder.save(run)
    folder.save(run)


def _log_losses(run: Run, meter: Meter, folder: RunFolder, bar: tqdm[Any]) -> None:
    """Log the losses since the last such line."""
    bar.set_postfix(loss=f"{meter.loss:.3f}")
    rate = float(f"{run.optimizer.param_groups[0]['lr']:.4g}")
    folder.write(run.iteration, **meter.read(), learning_rate=rate)


SMALLER = (
    "raise accumulate (the same batch in parts), set checkpointing=true, or lower batch_size or "
    "augment.crop"
)
WHILE_JUDGING = (
    "while validating, which takes photos one by one, shrunk to model.crop_size: lower that, or "
    "set validate_every=0 and evaluate the result on another machine"
)


@contextmanager
def memory_advice(directory: Path, advice: str = SMALLER) -> Iterator[None]:
    """If memory runs out on a GPU or the host, raise TrainingError with advice."""
    try:
        with memory.advising(advice):
            yield
    except memory.ShortageError as error:
        raise TrainingError(f"{error}; {kept(directory)}") from error


def fetch(
    run: Run,
    batches: Iterator[Batch],
    pace: Pace,
    folder: RunFolder,
    *,
    weigh: Weigh,
    signals: StopSignals,
) -> tuple[Batch, float]:
    """This process's batch and the weight of the global one, if all processes can go on.

    One sum over the processes gives the weight and tells whether one of them got a signal,
    skipped samples or failed to load, so that all stop at the same iteration.
    """
    batch, failure = Batch(torch.empty(0), torch.empty(0), []), ""
    try:
        batch = next_unless_stopped(batches, signals) or batch
    except (DatasetError, OSError, RuntimeError) as error:  # RuntimeError: a worker was killed
        failure = reason(error)
    weight, failures, stops, skipped = folder.world.sums(
        weigh(batch) if len(batch.images) else 0.0,
        failure != "",
        signals.received,
        len(batch.skipped),
    )
    if failures:
        reasons = folder.world.texts([failure] if failure else [])
        raise TrainingError(f"{reasons[0]}; {kept(folder.path)}")
    if stops:
        folder.save(run)
        raise TrainingError(
            f"stopped by a signal after iteration {run.iteration}: run the same command with "
            f"--resume {folder.path} in place of --out to continue"
        )
    if skipped:
        note_skips(run, folder.world.texts(batch.skipped), pace.max_skips, folder)
    return batch, weight


def next_unless_stopped(batches: Iterator[Batch], signals: StopSignals) -> Batch | None:
    """The next batch, or None if a signal came before it.

    The signal raises inside `next`: a loader process that is stopped or swapped out may never send
    the rest of a batch, and PyTorch reads that without a timeout.
    """
    try:
        signals.waiting = True
        batch = None if signals.received else _next(batches)
        signals.waiting = False
    except WaitStopped:
        return None
    except BaseException:
        signals.waiting = False
        raise
    return batch


def _next(batches: Iterator[Batch]) -> Batch:
    while True:
        try:
            return next(batches)
        except StillLoading:
            pass


def reason(error: Exception) -> str:
    """An error's message, without the traceback and the class that a loader's worker puts first."""
    last = str(error).strip().splitlines()[-1]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", last)


def note_skips(run: Run, lines: list[str], limit: int, folder: RunFolder) -> None:
    """Log the files that could not be read; raises TrainingError if there are too many."""
    for line in lines:
        folder.write(run.iteration + 1, skipped=line)  # part of the iteration that begins
    run.skipped += len(lines)
    if run.skipped > limit:
        raise TrainingError(
            f"{run.skipped} samples could not be read, max_skips is {limit}; the last is "
            f"{lines[-1]}: repair them (python -m model.data check names all) or raise max_skips; "
            f"{kept(folder.path)}"
        )


class FirstLine:
    """Say within FIRST_LINE_S that the training runs, and how long it will take.

    The first iteration is slow and not counted. If even it takes longer, that is logged.
    """

    def __init__(self, start: int, stop: int, *, shown: bool, since: float = STARTED) -> None:
        """`since`: when the process started, by time.monotonic()."""
        self.start, self.stop = start, stop
        self.told = not shown or start >= stop
        self.began = self.first = time.monotonic()
        self.due = since + FIRST_LINE_S
        self.timer = threading.Timer(max(0.0, self.due - self.began), self._still)
        self.timer.daemon = True

    def __enter__(self) -> FirstLine:
        if not self.told:
            self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()

    def _still(self) -> None:
        log.info("iteration %d runs; the first ones are the slowest", self.start + 1)

    def tell(self, iteration: int) -> None:
        """Note the end of an iteration, and log the line when it is due."""
        now = time.monotonic()
        done = iteration - self.start
        if done == 1:
            self.first = now
            log.debug("first iteration after %.1f s", now - self.began)
        elif not self.told and (done > ENOUGH_TO_ESTIMATE or now > self.due - FIRST_LINE_S / 2):
            seconds = (now - self.first) / (done - 1)
            left = seconds * (self.stop - iteration)
            log.info(
                "iteration %d of %d: %.2g s each, about %s to go",
                iteration,
                self.stop,
                seconds,
                duration(left),
            )
            self.told = True
            self.timer.cancel()


def duration(seconds: float) -> str:
    """Seconds for reading: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Meter:
    """Measures loss, speed and waiting time since the last reading."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._clear()

    def _clear(self) -> None:
        self.losses: list[float] = []
        self.waited = 0.0
        self.began = self.since = time.monotonic()

    def loading(self) -> None:
        """Note that waiting for data begins."""
        self.since = time.monotonic()

    def loaded(self) -> None:
        """Note that the data has come."""
        self.waited += time.monotonic() - self.since

    def add(self, loss: float) -> None:
        """Count an iteration."""
        self.losses.append(loss)

    @property
    def loss(self) -> float:
        """The last one."""
        return self.losses[-1]

    def read(self) -> dict[str, float]:
        """Mean loss, crops per second and the share of time spent waiting for data."""
        seconds = time.monotonic() - self.began
        values = {
            "loss": round(sum(self.losses) / len(self.losses), 4),
            "crops_per_second": round(len(self.losses) * self.batch / seconds, 2),
            "waiting": round(self.waited / seconds, 3),
        }
        self._clear()
        return values
