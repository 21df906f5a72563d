"""Run a new model file on a share of live requests before it replaces the served model.

Clients only get the served model's answers. The new file, called the shadow, gets the same inputs
afterwards, and its labels are compared with those that were sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.inference.contract import Contract

if TYPE_CHECKING:
    from service.inference.models import ServedModel

log = logging.getLogger("service.shadow")

MOST_WAITING = 4  # images, each with a copy of its input; more are left out
PATIENCE_S = 30.0  # for the shadow's labels of an image
MOST_FAILURES = 3

Array = NDArray[np.uint8]
Verdict = Literal["running", "promoted", "dropped"]


@dataclass(frozen=True)
class Trial:
    """How long a shadow runs, and the conditions for its promotion."""

    share: float  # of the images, above 0 and up to 1
    images: int = 0  # to compare before the verdict; 0: an operator decides
    least_agreement: float = 0.95  # share of pixels with the same label
    most_slowdown: float = 1.5  # time of an image, as a multiple of the served model's


@dataclass(frozen=True)
class Report:
    """The results of a shadow so far."""

    verdict: Verdict
    reason: str | None  # of the verdict
    digest: str
    share: float
    images: int  # compared
    skipped: int  # left out because too many were waiting
    failures: int
    agreement: float | None  # share of pixels with the same label
    class_agreement: dict[str, float | None]  # IoU of both models' regions; None: in no photo
    seconds: float  # an image takes in the shadow
    served_seconds: float  # and in the served model
    memory_bytes: int  # that the process grew by when the shadow was loaded


class Shadow:
    """A candidate to replace a served model."""

    def __init__(
        self,
        candidate: ServedModel,
        served: ServedModel,
        trial: Trial,
        *,
        memory_bytes: int,
        on_verdict: Callable[[Shadow, Verdict, str], Coroutine[Any, Any, None]],
    ) -> None:
        """`on_verdict` is awaited once, when the trial is over. It ends the shadow."""
        self.candidate = candidate
        self.trial = trial
        self._served = served
        self._memory_bytes = memory_bytes
        self._on_verdict = on_verdict
        classes = len(candidate.engine.contract.classes)
        self.counts = np.zeros((classes, classes), np.int64)  # served label, shadow's label
        self.images = 0
        self._skipped = 0
        self._failures = 0
        self._judged = False
        self._random = random.Random()
        self._running: set[asyncio.Task[None]] = set()

    def offer(
        self, images: Sequence[Array], labels: Sequence[Array], valid: tuple[int, int]
    ) -> None:
        """Compare a share of inputs (H, W, C) with the labels (H, W) that the client gets.

        `valid`: the photo's part (h, w) at the top left; the rest is padding. Returns at once.
        """
        for image, served in zip(images, labels, strict=True):
            if self._random.random() >= self.trial.share:
                continue
            if len(self._running) >= MOST_WAITING:
                self._skipped += 1
                continue
            task = asyncio.create_task(self._compare(self._repadded(image, valid), served, valid))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _repadded(self, image: Array, valid: tuple[int, int]) -> Array:
        """Return a copy as the candidate pads it; the original's memory is used again."""
        target, (height, width) = self.candidate.engine.contract.input, valid
        copy = np.empty((*target.around(valid), target.channels), np.uint8)
        copy[:] = target.pad
        copy[:height, :width] = image[:height, :width]
        return copy

    async def _compare(self, image: Array, served: Array, valid: tuple[int, int]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        try:
            found, _ = await self.candidate.batcher.submit(image, "labels", deadline=deadline)
            part = slice(valid[0]), slice(valid[1])
            self.counts += await asyncio.to_thread(
                _confusion, served[part], found.labels[part], len(self.counts)
            )
            self.images += 1
        except Exception as error:  # any error: the client already has its answer
            self._failures += 1
            log.warning("the shadow of %s failed on an image: %s", self.candidate.name, error)
        await self._judge()

    async def _judge(self) -> None:
        trial = self.trial
        over = self.images >= trial.images or self._failures >= MOST_FAILURES
        if self._judged or not trial.images or not over:
            return
        self._judged = True
        problem = self._problem()
        await self._on_verdict(
            self,
            "dropped" if problem else "promoted",
            problem or f"{self.images} images agree as the trial demands",
        )

    def _problem(self) -> str | None:
        report = self.report()
        if self._failures >= MOST_FAILURES:
            return f"it failed on {self._failures} images"
        if (report.agreement or 0.0) < self.trial.least_agreement:
            return f"it agrees on {report.agreement:.4f} of the pixels"
        if report.seconds > self.trial.most_slowdown * report.served_seconds:
            return f"an image takes {report.seconds:.3f} s, not {report.served_seconds:.3f} s"
        return None

    def report(self, verdict: Verdict = "running", reason: str | None = None) -> Report:
        """Return the results so far."""
        pixels = int(self.counts.sum())
        same = np.diagonal(self.counts)
        either = self.counts.sum(axis=0) + self.counts.sum(axis=1) - same
        return Report(
            verdict,
            reason,
            self.candidate.engine.digest,
            self.trial.share,
            self.images,
            self._skipped,
            self._failures,
            int(same.sum()) / pixels if pixels else None,
            {
                name: int(both) / int(all_) if all_ else None
                for name, both, all_ in zip(
                    self.candidate.engine.contract.classes, same, either, strict=True
                )
            },
            self.candidate.batcher.item_s,
            self._served.batcher.item_s,
            self._memory_bytes,
        )

    def stop(self) -> None:
        """Compare nothing more."""
        self._judged = True
        current = (
            asyncio.current_task()
        )  # this may be called by a comparison, which ended the trial
        for task in self._running:
            if task is not current:
                task.cancel()


def _confusion(served: Array, found: Array, classes: int) -> NDArray[np.int64]:
    """Count pairs of labels, (classes, classes)."""
    pairs = served.astype(np.intp) * classes + found
    return np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)


def unlike(candidate: Contract, served: Contract) -> str | None:
    """Say why two models cannot be compared, or None."""
    if candidate.classes != served.classes:
        return "it has other classes: reload it without shadow"
    sizes = [(each.input.height, each.input.width) for each in (candidate, served)]
    if sizes[0] != sizes[1]:
        return "it takes photos of another size: reload it without shadow"
    if candidate.input.samples != served.input.samples:
        return "it takes other channels, or another range of them: reload it without shadow"
    return None


def resident_bytes() -> int:
    """Return the memory that this process occupies; 0 if it is unknown."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:  # not Linux
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
