"""Micro-batching: collect single items into batches, run them, and return single results.

The batcher knows neither HTTP nor ONNX Runtime. It batches arrays of equal shape and equal
options. Its sessions are functions that take a batch and return one result per item; they
share one queue. Only one session collects at a time, so that sessions do not split a batch;
all sessions may run at once. A batch that runs while nothing else runs or waits may use
another function, `alone`, which takes all CPUs. The guarantees, each covered by a test:

1. every accepted item is answered exactly once;
2. results match items in number and order;
3. a failed batch fails only its own items;
4. if a session's loop dies, its batch fails; when the last one dies, all pending items
   fail and the batcher is no longer alive;
5. closing accepts no more items, works until a deadline, then fails the rest;
6. requests that have had little go first: an item is overtaken by those that arrive until
   `YIELD` times the seconds that its request has had already, but at most `MOST_YIELD_S`, have
   passed. A small request, of one item and with little other work, is not overtaken. So it
   waits for the batches that run and for other small requests only, and a request with many
   items still gets its share (virtual clock, Zhang 1990);
7. for `SMALL_S` after a small request, an item whose turn has not come yet starts only while
   nothing else runs. So the next small request finds a session free, and most of the CPUs.

A session that fails many times in a row, for instance because its GPU is out of memory,
counts as dead.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, ShuttingDown

log = logging.getLogger("service.batcher")

Array = NDArray[np.uint8]
RECENT = 0.2  # weight of a batch in the moving average of the seconds of an item
MAX_FAILURES = 5  # in a row; then the session is at fault, not a batch
YIELD, MOST_YIELD_S = 8.0, 5.0
SMALL_CPU_S = 0.02  # most other work of a small request: that of a photo of about 3 megapixels
SMALL_S = 1.0  # clients that send one photo after another come back within it
UNKNOWN_ITEM_S = 0.1  # before the first batch

Result = TypeVar("Result")  # of one item


@dataclass(frozen=True)
class Timing:
    """How long an item waited and ran, in seconds."""

    queued_s: float
    ran_s: float
    batch: int  # items in its batch


@dataclass
class Share:
    """What a request has had of the service; the more it is, the longer its items yield."""

    several: bool = False  # whether the request has more than one item
    other_s: float = 0.0  # processor time of other work
    place: float = 0.0  # in the queue, of the request's next item: a time on the monotonic clock

    @property
    def small(self) -> bool:
        """Whether the request has one item, and little other work."""
        return not self.several and self.other_s <= SMALL_CPU_S

    def charge(self, seconds: float, cpu_s: float) -> None:
        """Count other work that was done for this request: how long it took, and its own time.

        The former is longer where much work of this kind waits, so all of it yields more.
        """
        self.place = max(self.place, time.monotonic()) + YIELD * seconds
        self.other_s += cpu_s

    def take_place(self, item_s: float) -> float:
        """Return the place of an item that takes `item_s` seconds, and count them.

        The place of a small request is the present.
        """
        now = time.monotonic()
        place = now if self.small else min(max(self.place, now), now + MOST_YIELD_S)
        self.place = place + YIELD * item_s
        self.several = True  # for the next item
        return place


@dataclass
class _Entry(Generic[Result]):
    item: Array
    future: asyncio.Future[tuple[Result, Timing]]
    deadline: float  # on the monotonic clock
    place: float  # in the queue
    options: tuple[object, ...] = ()
    arrived: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> tuple[object, ...]:
        """Items of equal kind may share a batch."""
        return (self.item.shape, self.options)


class Session(Generic[Result]):
    """A function that runs batches in its own thread."""

    def __init__(self, run: Callable[..., Sequence[Result]], number: int) -> None:
        self.run = run
        self.number = number
        self.worker = ThreadPoolExecutor(1, thread_name_prefix=f"engine-{number}")
        self.batch: list[_Entry[Result]] = []  # collected but not yet answered
        self.failures = 0  # in a row
        self.loop_task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether the session takes batches."""
        return self.loop_task is not None and not self.loop_task.done()


class Batcher(Generic[Result]):
    """A queue, and a dispatcher for each session."""

    def __init__(
        self,
        *runs: Callable[..., Sequence[Result]],
        max_batch: int = 4,
        max_wait_ms: float = 2.0,
        alone: Callable[..., Sequence[Result]] | None = None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        """Each of `runs` is called in its own thread with one batch (N, H, W, ...) at a time,
        followed by the options that the items were submitted with.

        `alone` replaces them for a batch that starts while nothing else runs or waits.
        `on_death` is called in the event loop when the last session has died.
        """
        self.sizes: Counter[int] = Counter()  # batch size -> number of batches run
        self.item_s = 0.0  # seconds of an item in recent batches; 0 before the first batch
        self.sessions = [Session(run, number) for number, run in enumerate(runs)]
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1000
        self._alone = alone
        self._on_death = on_death
        self._queue: deque[_Entry[Result]] = deque()  # sorted by place
        self._change = asyncio.Event()  # an item has come, or a batch has ended
        self._small_until = 0.0  # until then items that are early leave room for small requests
        self._collecting = asyncio.Lock()
        self._closing = False

    def start(self) -> None:
        """Start dispatching. Call it inside a running event loop."""
        for session in self.sessions:
            name = f"batcher-{session.number}"
            session.loop_task = asyncio.create_task(self._dispatch(session), name=name)
            session.loop_task.add_done_callback(partial(self._loop_ended, session))

    @property
    def alive(self) -> bool:
        """Whether any session takes batches."""
        return self.live_sessions > 0

    @property
    def live_sessions(self) -> int:
        """The number of sessions that take batches."""
        return sum(session.alive for session in self.sessions)

    @property
    def depth(self) -> int:
        """The number of waiting items."""
        return len(self._queue)

    @property
    def waiting_s(self) -> float:
        """Estimate the seconds until the waiting items have run, from recent batches."""
        return self.depth * self.item_s / max(1, self.live_sessions)

    async def submit(
        self, item: Array, *options: object, deadline: float, share: Share | None = None
    ) -> tuple[Result, Timing]:
        """Run one item (H, W, ...) in a batch with others of the same shape and options.

        `deadline` is a time on the monotonic clock. Items of one request are submitted with
        the same `share`. Raises DeadlineExceeded, InferenceFailed, EngineUnavailable or
        ShuttingDown. Cancelling the caller drops the item unless its batch is already running.
        """
        if self._closing:
            raise ShuttingDown("the service is shutting down: send the request to another replica")
        if not self.alive:
            raise EngineUnavailable("the inference loop has died: try again in a while")
        loop = asyncio.get_running_loop()
        share = share or Share()
        if share.small:
            self._small_until = time.monotonic() + SMALL_S
        place = share.take_place(self.item_s or UNKNOWN_ITEM_S)
        entry: _Entry[Result] = _Entry(item, loop.create_future(), deadline, place, options)
        bisect.insort(self._queue, entry, key=lambda each: each.place)
        self._change.set()
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), _expire, entry)
        try:
            return await entry.future
        finally:
            timer.cancel()

    async def close(self, timeout_s: float) -> None:
        """Accept no more items, work on the queue for up to `timeout_s`, then fail the rest."""
        self._closing = True
        self._change.set()
        tasks = [each.loop_task for each in self.sessions if each.loop_task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail_all(
            ShuttingDown("the service shut down before it reached this image: send it again")
        )
        for session in self.sessions:
            session.worker.shutdown(wait=False, cancel_futures=True)

    async def _dispatch(self, session: Session[Result]) -> None:
        while await self._collect(session):
            await self._run(session)

    async def _collect(self, session: Session[Result]) -> bool:
        """Collect a session's next batch; return False when the batcher is closed and empty."""
        async with self._collecting:
            while await self._wait_for_work(session):
                self._take(session)
                if not session.batch:
                    continue
                if len(session.batch) < self._max_batch and not self._closing:
                    await self._fill(session)
                return True
        return False

    async def _wait_for_work(self, session: Session[Result]) -> bool:
        """Wait for an item to start; return False when the batcher is closed and empty."""
        while not self._waiting() or (self._held_back() and self._others_run(session)):
            if self._closing and not self._queue:
                return False
            self._change.clear()
            most_s = self._early_s(self._queue[0]) if self._queue else None
            with suppress(TimeoutError):
                await asyncio.wait_for(self._change.wait(), most_s)
        return True

    def _waiting(self) -> bool:
        """Whether an item waits; drops those at the head that are cancelled or expired."""
        while self._queue and self._queue[0].future.done():
            self._queue.popleft()
        return bool(self._queue)

    def _early_s(self, entry: _Entry[Result]) -> float:
        """The seconds for which it is not an item's turn yet and small requests may come."""
        return min(entry.place, self._small_until) - time.monotonic()

    def _held_back(self) -> bool:
        """Whether the waiting items are early; not for an empty queue."""
        return self._early_s(self._queue[0]) > 0

    def _others_run(self, session: Session[Result]) -> bool:
        return any(each.batch for each in self.sessions if each is not session)

    def _take(self, session: Session[Result]) -> None:
        """Move waiting entries of one kind into the batch, in order; drop answered ones."""
        batch = session.batch
        of_other_kinds: list[_Entry[Result]] = []
        while self._queue and len(batch) < self._max_batch:
            entry = self._queue.popleft()
            if entry.future.done():  # cancelled, or expired
                continue
            if batch and entry.kind != batch[0].kind:
                of_other_kinds.append(entry)
            else:
                batch.append(entry)
        self._queue.extendleft(reversed(of_other_kinds))

    async def _fill(self, session: Session[Result]) -> None:
        """Add items to the batch until it is full or its first item has waited `max_wait_ms`."""
        until = session.batch[0].arrived + self._max_wait_s
        while len(session.batch) < self._max_batch and not self._closing:
            remaining = until - time.monotonic()
            if remaining <= 0:
                return
            self._change.clear()
            try:
                await asyncio.wait_for(self._change.wait(), remaining)
            except TimeoutError:
                return
            self._take(session)

    async def _run(self, session: Session[Result]) -> None:
        live = [entry for entry in session.batch if not entry.future.done()]
        if live:
            began = time.monotonic()
            self.sizes[len(live)] += 1
            run = session.run if self._alone is None or self._leaves_room(session) else self._alone
            loop = asyncio.get_running_loop()
            try:
                results = await loop.run_in_executor(session.worker, _run_batch, run, live)
            except Exception:
                log.exception("a batch of %d failed in session %d", len(live), session.number)
                _answer(
                    live,
                    InferenceFailed(
                        "the engine failed on this image; the service's log has the reason"
                    ),
                )
                session.failures += 1
            else:
                session.failures = 0
                ran = time.monotonic() - began
                self._learn(ran / len(live))
                for entry, result in zip(live, results, strict=True):
                    if not entry.future.done():
                        timing = Timing(began - entry.arrived, ran, len(live))
                        entry.future.set_result((result, timing))
        session.batch = []
        self._change.set()
        if session.failures >= MAX_FAILURES:
            raise RuntimeError(f"{session.failures} batches in a row have failed")

    def _learn(self, item_s: float) -> None:
        known = self.item_s or item_s
        self.item_s = known + RECENT * (item_s - known)

    def _leaves_room(self, session: Session[Result]) -> bool:
        """Whether a batch must not take all CPUs, because another runs or may start."""
        others_may_start = self._waiting() and not self._held_back()
        is_early = self._early_s(session.batch[0]) > 0
        return self._others_run(session) or others_may_start or is_early

    def _loop_ended(self, session: Session[Result], task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._closing and error is None:
            return
        log.critical("the inference loop of session %d died", session.number, exc_info=error)
        unavailable = EngineUnavailable("the inference loop has died: try again in a while")
        _answer(session.batch, unavailable)
        session.batch = []
        self._change.set()
        if not self.alive:
            self._fail_all(unavailable)
            if not self._closing:
                self._on_death()

    def _fail_all(self, error: Exception) -> None:
        for session in self.sessions:
            _answer(session.batch, error)
            session.batch = []
        _answer(self._queue, error)
        self._queue.clear()


def _run_batch(
    run: Callable[..., Sequence[Result]], batch: list[_Entry[Result]]
) -> Sequence[Result]:
    results = run(np.stack([entry.item for entry in batch]), *batch[0].options)
    if len(results) != len(batch):
        raise RuntimeError(f"{len(batch)} items in, {len(results)} results out")
    return results


def _answer(entries: Iterable[_Entry[Result]], error: Exception) -> None:
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(error)


def _expire(entry: _Entry[Result]) -> None:
    if not entry.future.done():
        waited = round((time.monotonic() - entry.arrived) * 1000)
        entry.future.set_exception(
            DeadlineExceeded(
                f"no result after {waited} ms in the queue: set a longer deadline, or send less"
            )
        )
