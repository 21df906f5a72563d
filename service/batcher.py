"""Micro-batching: single items in, whole batches to one worker, single results out.

Knows neither HTTP nor ONNX Runtime: it batches arrays of equal shape for any
function from a batch to a batch. Its laws, each a test:

1. every accepted item is answered exactly once;
2. results match items in number and order;
3. a failed batch fails only itself;
4. a dead loop fails all that is pending and is seen as not alive;
5. closing stops intake, drains until a deadline, then fails the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, ShuttingDown

log = logging.getLogger("service.batcher")

Array = NDArray[np.uint8]
Result = TypeVar("Result")  # what a worker makes of one item


@dataclass(frozen=True)
class Timing:
    """What an item went through, in seconds."""

    queued_s: float
    ran_s: float
    batch: int  # items in its batch


@dataclass
class _Entry(Generic[Result]):
    item: Array
    future: asyncio.Future[tuple[Result, Timing]]
    deadline: float  # of the monotonic clock
    arrived: float = field(default_factory=time.monotonic)


class Batcher(Generic[Result]):
    """One dispatcher in front of one worker thread."""

    def __init__(
        self,
        run: Callable[[Array], Sequence[Result]],
        *,
        max_batch: int = 4,
        max_wait_ms: float = 2.0,
    ) -> None:
        """`run` is called in a thread of its own, one batch (N, H, W, ...) at a time."""
        self.sizes: Counter[int] = Counter()  # how many batches of which size have run
        self._run = run
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1000
        self._queue: deque[_Entry[Result]] = deque()
        self._arrival = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._closing = False
        self._running: list[_Entry[Result]] = []
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start dispatching; must be called inside a running event loop."""
        self._loop_task = asyncio.create_task(self._dispatch(), name="batcher")
        self._loop_task.add_done_callback(self._loop_ended)

    @property
    def alive(self) -> bool:
        """Whether items are being worked on."""
        return self._loop_task is not None and not self._loop_task.done()

    @property
    def depth(self) -> int:
        """Items waiting."""
        return len(self._queue)

    async def submit(self, item: Array, *, deadline: float) -> tuple[Result, Timing]:
        """Have one item (H, W, ...) worked on, in a batch with others of its shape.

        `deadline` is a point of the monotonic clock. Raises DeadlineExceeded,
        InferenceFailed, EngineUnavailable or ShuttingDown. Cancelling the
        caller drops the item, unless its batch runs already.
        """
        if self._closing:
            raise ShuttingDown("the service is shutting down: send the request to another replica")
        if not self.alive:
            raise EngineUnavailable("the inference loop has stopped: restart the service")
        loop = asyncio.get_running_loop()
        entry: _Entry[Result] = _Entry(item, loop.create_future(), deadline)
        self._queue.append(entry)
        self._arrival.set()
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), _expire, entry)
        try:
            return await entry.future
        finally:
            timer.cancel()

    async def close(self, timeout_s: float) -> None:
        """Stop intake, work on what waits for up to `timeout_s`, fail the rest."""
        self._closing = True
        self._arrival.set()
        if self._loop_task is not None:
            await asyncio.wait([self._loop_task], timeout=timeout_s)
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self._fail_all(ShuttingDown("the service stopped before this image's turn: send it again"))
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _dispatch(self) -> None:
        while await self._wait_for_work():
            batch = self._take()
            if not batch:
                continue
            if len(batch) < self._max_batch and not self._closing:
                await self._wait_for_company(batch)
            await self._work_on(batch)

    async def _wait_for_work(self) -> bool:
        """Return once something waits; False when there will be nothing more."""
        while not self._queue:
            if self._closing:
                return False
            self._arrival.clear()
            await self._arrival.wait()
        return True

    def _take(self, batch: list[_Entry[Result]] | None = None) -> list[_Entry[Result]]:
        """Move waiting entries of one shape into a batch, in order, dropping the dead."""
        batch = [] if batch is None else batch
        passed_over: list[_Entry[Result]] = []
        while self._queue and len(batch) < self._max_batch:
            entry = self._queue.popleft()
            if entry.future.done():  # cancelled, or expired
                continue
            if batch and entry.item.shape != batch[0].item.shape:
                passed_over.append(entry)
            else:
                batch.append(entry)
        self._queue.extendleft(reversed(passed_over))
        self._running = batch
        return batch

    async def _wait_for_company(self, batch: list[_Entry[Result]]) -> None:
        """Fill up the batch until the first item has waited long enough."""
        until = batch[0].arrived + self._max_wait_s
        while len(batch) < self._max_batch and not self._closing:
            remaining = until - time.monotonic()
            if remaining <= 0:
                return
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), remaining)
            except TimeoutError:
                return
            self._take(batch)

    async def _work_on(self, batch: list[_Entry[Result]]) -> None:
        live = [entry for entry in batch if not entry.future.done()]
        if live:
            began = time.monotonic()
            self.sizes[len(live)] += 1
            loop = asyncio.get_running_loop()
            try:
                results = await loop.run_in_executor(self._worker, self._run_batch, live)
            except Exception:
                log.exception("a batch of %d failed", len(live))
                _answer(live, InferenceFailed("the engine failed on this image; the log says why"))
            else:
                ran = time.monotonic() - began
                for entry, result in zip(live, results, strict=True):
                    if not entry.future.done():
                        timing = Timing(began - entry.arrived, ran, len(live))
                        entry.future.set_result((result, timing))
        self._running = []

    def _run_batch(self, batch: list[_Entry[Result]]) -> Sequence[Result]:
        results = self._run(np.stack([entry.item for entry in batch]))
        if len(results) != len(batch):
            raise RuntimeError(f"{len(batch)} items in, {len(results)} results out")
        return results

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the inference loop died", exc_info=error)
            self._fail_all(EngineUnavailable("the inference loop has died: restart the service"))

    def _fail_all(self, error: Exception) -> None:
        _answer([*self._running, *self._queue], error)
        self._running = []
        self._queue.clear()


def _answer(entries: list[_Entry[Result]], error: Exception) -> None:
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(error)


def _expire(entry: _Entry[Result]) -> None:
    if not entry.future.done():
        waited = round((time.monotonic() - entry.arrived) * 1000)
        entry.future.set_exception(
            DeadlineExceeded(f"no result within {waited} ms of queueing: allow more, or send less")
        )
