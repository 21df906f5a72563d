"""The guarantees of the batcher under injected faults, for one session and for two."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import numpy as np
import pytest

from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, ShuttingDown
from service.inference import batcher as batching
from service.inference.batcher import MAX_FAILURES, Array, Batcher, Share, Timing


def item(value: int, side: int = 2) -> Array:
    return np.full((side, side), value, np.uint8)


class Doubler:
    """A function that doubles every item, can be held, and fails on a batch that contains 13."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    @property
    def values(self) -> list[int]:
        return [value for batch in self.batches for value in batch]

    def __call__(self, batch: Array) -> Array:
        self.batches.append([int(each.flat[0]) for each in batch])
        self.entered.release()
        assert self.gate.wait(10)
        if (batch == 13).any():
            raise RuntimeError("bad luck")
        return batch * 2


Scenario = Callable[[Batcher[Array], Doubler], Awaitable[None]]


class Run(Protocol):
    """Run a scenario on a batcher, then close it and check that every request got an answer."""

    def __call__(
        self, scenario: Scenario, *, max_batch: int = 4, max_wait_ms: float = 2.0
    ) -> None: ...


@pytest.fixture(params=[1, 2], ids=["one session", "two sessions"])
def run(request: pytest.FixtureRequest) -> Run:
    def with_sessions(scenario: Scenario, *, max_batch: int = 4, max_wait_ms: float = 2.0) -> None:
        run_scenario(scenario, request.param, max_batch, max_wait_ms)

    return with_sessions


def run_scenario(
    scenario: Scenario, sessions: int, max_batch: int = 4, max_wait_ms: float = 2.0
) -> None:
    async def main() -> None:
        doubler = Doubler()
        batcher: Batcher[Array] = Batcher(
            *[doubler] * sessions,  # type: ignore[arg-type]
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
        )
        batcher.start()
        try:
            await scenario(batcher, doubler)
        finally:
            doubler.gate.set()
            await batcher.close(1)
        assert batcher.depth == 0

    asyncio.run(main())


def soon() -> float:
    return time.monotonic() + 10


def ask(
    batcher: Batcher[Array], value: int, side: int = 2, share: Share | None = None
) -> asyncio.Task[tuple[Array, Timing]]:
    return asyncio.create_task(batcher.submit(item(value, side), deadline=soon(), share=share))


async def hold(
    batcher: Batcher[Array], doubler: Doubler
) -> list[asyncio.Task[tuple[Array, Timing]]]:
    """Give every worker a batch, so that what follows has to wait."""
    doubler.gate.clear()
    first = []
    for _ in batcher.sessions:
        first.append(ask(batcher, 1))
        assert await asyncio.to_thread(doubler.entered.acquire, timeout=10)
    return first


def test_every_item_gets_its_own_result_once(run: Run) -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        answers = await asyncio.gather(*(ask(batcher, value) for value in range(20, 70)))
        assert [int(result.flat[0]) for result, _ in answers] == [2 * v for v in range(20, 70)]
        assert sorted(doubler.values) == list(range(20, 70))

    run(scenario, max_batch=8)


def test_a_full_batch_leaves_without_waiting(run: Run) -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        await asyncio.wait_for(asyncio.gather(*(ask(batcher, v) for v in range(4))), 5)
        assert doubler.batches == [[0, 1, 2, 3]]

    run(scenario, max_batch=4, max_wait_ms=60_000)


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_session_never_runs_two_batches_at_once(sessions: int) -> None:
    """Overlapping runs of one ONNX Runtime session are slower, each and in total."""
    running = [0] * sessions
    most = [0] * sessions
    lock = threading.Lock()

    def worker(number: int) -> Callable[[Array], Array]:
        def work(batch: Array) -> Array:
            with lock:
                running[number] += 1
                most[number] = max(most[number], running[number])
            time.sleep(0.001)
            with lock:
                running[number] -= 1
            return batch

        return work

    async def main() -> None:
        batcher: Batcher[Array] = Batcher(
            *(worker(number) for number in range(sessions)),  # type: ignore[arg-type]
            max_batch=2,
        )
        batcher.start()
        await asyncio.gather(*(ask(batcher, value) for value in range(60)))
        await batcher.close(1)

    asyncio.run(main())
    assert most == [1] * sessions


def test_shapes_are_never_mixed_and_keep_their_order(run: Run) -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        first = await hold(batcher, doubler)
        tasks = [ask(batcher, value, side=2 + value % 2) for value in range(2, 8)]
        await asyncio.sleep(0)
        doubler.gate.set()
        await asyncio.gather(*first)
        results = await asyncio.gather(*tasks)
        assert [int(result.flat[0]) for result, _ in results] == [4, 6, 8, 10, 12, 14]
        assert sorted(doubler.batches) == [*[[1]] * len(first), [2, 4, 6], [3, 5, 7]]

    run(scenario, max_batch=8, max_wait_ms=0)


def test_a_request_that_has_had_little_goes_first() -> None:
    """Single items overtake the later items of others, and those with many go on in turn."""

    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        first = await hold(batcher, doubler)
        several = [Share(), Share()]
        tasks = [ask(batcher, 20 + v, share=several[0]) for v in range(4)]
        tasks += [ask(batcher, 30 + v, share=several[1]) for v in range(4)]
        tasks += [ask(batcher, 40)]
        await asyncio.sleep(0)
        doubler.gate.set()
        await asyncio.gather(*first, *tasks)
        assert doubler.values[1:] == [20, 30, 40, 21, 31, 22, 32, 23, 33]

    run_scenario(scenario, sessions=1, max_batch=1, max_wait_ms=0)


def test_a_request_whose_photo_took_long_to_decode_yields() -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        first = await hold(batcher, doubler)
        heavy = Share()
        heavy.charge(0.5, 0.5)
        tasks = [ask(batcher, 20, share=heavy), ask(batcher, 30)]
        await asyncio.sleep(0)
        doubler.gate.set()
        await asyncio.gather(*first, *tasks)
        assert doubler.values[1:] == [30, 20]

    run_scenario(scenario, sessions=1, max_batch=1, max_wait_ms=0)


def test_a_small_request_does_not_yield_however_long_its_decoder_was_busy() -> None:
    now = time.monotonic()
    small = Share()
    small.charge(3.0, batching.SMALL_CPU_S)
    assert small.take_place(0.1) == pytest.approx(now, abs=0.05)
    large = Share()
    large.charge(3.0, 2 * batching.SMALL_CPU_S)
    assert large.take_place(0.1) == pytest.approx(now + batching.MOST_YIELD_S, abs=0.05)


def large_share() -> Share:
    """The share of a request that yields as long as any."""
    share = Share()
    share.charge(1000, 1000)
    return share


async def after_a_small_one(batcher: Batcher[Array], doubler: Doubler) -> None:
    """Run a small request, then hold all that follow."""
    await ask(batcher, 10)
    assert doubler.entered.acquire(timeout=10)
    doubler.gate.clear()


def test_large_requests_leave_room_while_small_ones_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them runs at a time, and the next small one starts at once."""
    monkeypatch.setattr(batching, "SMALL_S", 60.0)

    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        await after_a_small_one(batcher, doubler)
        large = [ask(batcher, value, share=large_share()) for value in (20, 21)]
        assert await asyncio.to_thread(doubler.entered.acquire, timeout=10)
        assert not await asyncio.to_thread(doubler.entered.acquire, timeout=0.1)
        assert doubler.values == [10, 20]
        small = ask(batcher, 30)
        assert await asyncio.to_thread(doubler.entered.acquire, timeout=10)
        assert doubler.values == [10, 20, 30]
        doubler.gate.set()
        await asyncio.gather(small, *large)
        assert doubler.values == [10, 20, 30, 21]

    run_scenario(scenario, sessions=2, max_batch=1, max_wait_ms=0)


def test_a_cancelled_small_request_lets_no_large_one_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "SMALL_S", 60.0)

    async def main() -> None:
        first, second = Doubler(), Doubler()
        batcher: Batcher[Array] = Batcher(first, second, max_batch=1, max_wait_ms=0)  # type: ignore[arg-type]
        batcher.start()
        try:
            for each in (first, second):
                each.gate.clear()
            running = [ask(batcher, value) for value in (1, 2)]
            for each in (first, second):
                assert await asyncio.to_thread(each.entered.acquire, timeout=10)
            cancelled, large = ask(batcher, 3), ask(batcher, 20, share=large_share())
            await asyncio.sleep(0)
            cancelled.cancel()
            first.gate.set()
            assert not await asyncio.to_thread(first.entered.acquire, timeout=0.1)
            second.gate.set()
            await asyncio.gather(*running, large)
        finally:
            first.gate.set()
            second.gate.set()
            await batcher.close(1)

    asyncio.run(main())


def test_large_requests_take_all_sessions_where_no_small_ones_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "SMALL_S", 0.2)

    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        await after_a_small_one(batcher, doubler)
        large = [ask(batcher, value, share=large_share()) for value in (20, 21)]
        for _ in large:
            assert await asyncio.to_thread(doubler.entered.acquire, timeout=10)
        doubler.gate.set()
        await asyncio.gather(*large)

    run_scenario(scenario, sessions=2, max_batch=1, max_wait_ms=0)


def test_a_large_request_that_has_waited_for_its_turn_starts_beside_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "SMALL_S", 60.0)
    monkeypatch.setattr(batching, "MOST_YIELD_S", 0.2)

    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        doubler.gate.clear()
        small = ask(batcher, 10)
        assert await asyncio.to_thread(doubler.entered.acquire, timeout=10)
        large = ask(batcher, 20, share=large_share())
        assert await asyncio.to_thread(doubler.entered.acquire, timeout=10)
        doubler.gate.set()
        _, timing = await large
        assert timing.queued_s >= 0.2
        await small

    run_scenario(scenario, sessions=2, max_batch=1, max_wait_ms=0)


def test_items_that_keep_arriving_do_not_overtake_a_large_request_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of its items is overtaken only by those that arrive within MOST_YIELD_S."""
    monkeypatch.setattr(batching, "MOST_YIELD_S", 0.2)

    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        first = await hold(batcher, doubler)
        share = Share()
        share.charge(1000, 1000)
        large = ask(batcher, 20, share=share)
        await asyncio.sleep(0)
        doubler.gate.set()
        until = asyncio.get_running_loop().time() + 0.4
        waiting = [ask(batcher, 30), ask(batcher, 31)]  # there is always one more
        while asyncio.get_running_loop().time() < until or not large.done():
            waiting.append(ask(batcher, 32))
            await waiting.pop(0)
        await asyncio.gather(*first, large, *waiting)
        order = doubler.values
        assert 3 < order.index(20) < len(order) - 3

    run_scenario(scenario, sessions=1, max_batch=1, max_wait_ms=0)


def test_a_place_is_never_further_away_than_promised() -> None:
    share = Share()
    now = time.monotonic()
    assert share.take_place(0.1) == pytest.approx(now, abs=0.05)
    assert share.take_place(100.0) == pytest.approx(now + 0.1 * batching.YIELD, abs=0.05)
    assert share.take_place(100.0) == pytest.approx(now + batching.MOST_YIELD_S, abs=0.05)


def test_options_reach_the_function_and_are_never_mixed() -> None:
    """A batch holds one kind of request; other kinds wait for their turn in order."""
    ran: list[tuple[list[int], tuple[object, ...]]] = []
    entered, gate = threading.Event(), threading.Event()

    def work(batch: Array, *options: object) -> Array:
        entered.set()
        assert gate.wait(10)
        ran.append(([int(each.flat[0]) for each in batch], options))
        return batch

    async def main() -> None:
        batcher: Batcher[Array] = Batcher(work, max_batch=4, max_wait_ms=0)  # type: ignore[arg-type]
        batcher.start()
        wanted = [(0, ()), (1, (True,)), (2, (False,)), (3, (True,)), (4, (False,)), (5, ())]
        tasks = []
        for value, options in wanted:
            asked = batcher.submit(item(value), *options, deadline=soon())
            tasks.append(asyncio.create_task(asked))
            await asyncio.to_thread(entered.wait, 10)  # the others wait behind the first
        gate.set()
        answers = await asyncio.gather(*tasks)
        await batcher.close(1)
        assert [int(result.flat[0]) for result, _ in answers] == [0, 1, 2, 3, 4, 5]

    asyncio.run(main())
    assert ran == [([0], ()), ([1, 3], (True,)), ([2, 4], (False,)), ([5], ())]


def test_a_failed_batch_fails_only_itself(run: Run) -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        first = await hold(batcher, doubler)
        unlucky = [ask(batcher, 13), ask(batcher, 14)]
        await asyncio.sleep(0)
        doubler.gate.set()
        await asyncio.gather(*first)
        failures = await asyncio.gather(*unlucky, return_exceptions=True)
        assert [type(failure) for failure in failures] == [InferenceFailed, InferenceFailed]
        result, _ = await ask(batcher, 5)
        assert result.flat[0] == 10

    run(scenario)


def test_results_missing_from_a_batch_fail_it() -> None:
    async def main() -> None:
        batcher: Batcher[Array] = Batcher(lambda batch: batch[:-1])
        batcher.start()
        with pytest.raises(InferenceFailed):
            await batcher.submit(item(1), deadline=soon())
        await batcher.close(1)

    asyncio.run(main())


def test_a_cancelled_request_does_not_strand_its_batch(run: Run) -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        first = await hold(batcher, doubler)
        gone, stays = ask(batcher, 2), ask(batcher, 3)
        await asyncio.sleep(0)
        gone.cancel()
        doubler.gate.set()
        await asyncio.gather(*first)
        result, _ = await stays
        assert result.flat[0] == 6
        assert [2] not in doubler.batches
        assert doubler.batches[-1] == [3]

    run(scenario)


def test_a_deadline_is_answered_in_time_and_its_work_is_dropped(run: Run) -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        first = await hold(batcher, doubler)
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(item(7), deadline=time.monotonic() + 0.02)
        doubler.gate.set()
        await asyncio.gather(*first)
        await ask(batcher, 8)
        assert 7 not in doubler.values

    run(scenario)


def test_a_dead_loop_fails_waiting_requests_and_refuses_new_ones() -> None:
    async def main() -> None:
        deaths: list[int] = []
        batcher: Batcher[Array] = Batcher(
            Doubler(),  # type: ignore[arg-type]
            on_death=lambda: deaths.append(1),
        )
        batcher.start()
        assert batcher.alive
        batcher._fill = None  # type: ignore[assignment, method-assign] # the fault
        with pytest.raises(EngineUnavailable):
            await batcher.submit(item(1), deadline=soon())
        assert not batcher.alive
        assert deaths == [1]
        with pytest.raises(EngineUnavailable):
            await batcher.submit(item(2), deadline=soon())
        await batcher.close(1)

    asyncio.run(main())


def kill(batcher: Batcher[Array], session: int) -> None:
    """End one dispatcher, as an internal error would."""
    task = batcher.sessions[session].loop_task
    assert task is not None
    task.cancel()


def test_a_dead_session_leaves_the_work_to_the_other() -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        first = await hold(batcher, doubler)
        waiting = ask(batcher, 3)
        await asyncio.sleep(0)
        kill(batcher, 0)
        with pytest.raises(EngineUnavailable):  # its own batch
            await first[0]
        assert (batcher.live_sessions, batcher.alive) == (1, True)
        doubler.gate.set()
        assert [int((await task)[0].flat[0]) for task in (first[1], waiting)] == [2, 6]
        kill(batcher, 1)
        await asyncio.sleep(0.01)
        assert not batcher.alive
        with pytest.raises(EngineUnavailable):
            await ask(batcher, 4)

    run_scenario(scenario, sessions=2)


def test_a_session_that_dies_while_it_collects_lets_the_other_collect() -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        lost = ask(batcher, 1)
        await asyncio.sleep(0.01)
        kill(batcher, 0)  # it waits for more requests
        with pytest.raises(EngineUnavailable):
            await lost
        results = await asyncio.gather(*(ask(batcher, value) for value in (2, 3, 4, 5)))
        assert [int(result.flat[0]) for result, _ in results] == [4, 6, 8, 10]
        assert doubler.batches == [[2, 3, 4, 5]]

    run_scenario(scenario, sessions=2, max_wait_ms=60_000)


def test_two_sessions_run_at_once_and_do_not_split_a_batch() -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        doubler.gate.clear()
        tasks = [ask(batcher, value) for value in range(1, 9)]
        for _ in range(2):
            assert await asyncio.to_thread(doubler.entered.acquire, timeout=10)
        assert sorted(doubler.batches) == [[1, 2, 3, 4], [5, 6, 7, 8]]  # both inside the gate
        doubler.gate.set()
        await asyncio.gather(*tasks)

    run_scenario(scenario, sessions=2, max_wait_ms=60_000)


def test_a_session_that_fails_every_time_dies_but_one_success_saves_it() -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        for _ in range(MAX_FAILURES - 1):
            with pytest.raises(InferenceFailed):
                await ask(batcher, 13)
        await ask(batcher, 1)
        for _ in range(MAX_FAILURES):
            assert batcher.alive
            with pytest.raises(InferenceFailed):
                await ask(batcher, 13)
        await asyncio.sleep(0.01)
        assert not batcher.alive

    run_scenario(scenario, sessions=1)


def test_closing_finishes_waiting_requests_and_refuses_new_ones(run: Run) -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        first = await hold(batcher, doubler)
        waiting = ask(batcher, 2)
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close(10))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await batcher.submit(item(3), deadline=soon())
        doubler.gate.set()
        await closing
        assert [int((await task)[0].flat[0]) for task in first] == [2] * len(first)
        assert int((await waiting)[0].flat[0]) == 4

    run(scenario)


def test_closing_fails_requests_that_the_deadline_cuts_off(run: Run) -> None:
    async def scenario(batcher: Batcher[Array], doubler: Doubler) -> None:
        first = await hold(batcher, doubler)
        waiting = ask(batcher, 2)
        await asyncio.sleep(0)
        await batcher.close(0.05)
        results = await asyncio.gather(*first, waiting, return_exceptions=True)
        assert {type(result) for result in results} == {ShuttingDown}

    run(scenario)


def test_a_batch_that_runs_alone_goes_to_the_function_for_it() -> None:
    async def main() -> None:
        shared, whole = Doubler(), Doubler()
        batcher: Batcher[Array] = Batcher(shared, shared, max_batch=1, alone=whole)  # type: ignore[arg-type]
        batcher.start()
        soon = time.monotonic() + 10
        try:
            for value in (1, 2):
                await batcher.submit(item(value), deadline=soon)
            assert (whole.values, shared.values) == ([1, 2], [])
            whole.gate.clear()
            lone = asyncio.create_task(batcher.submit(item(3), deadline=soon))
            await asyncio.to_thread(whole.entered.acquire)
            await asyncio.to_thread(whole.entered.acquire)
            await asyncio.to_thread(whole.entered.acquire)
            result, _ = await batcher.submit(item(4), deadline=soon)  # beside the single one
            assert (whole.values, shared.values) == ([1, 2, 3], [4])
            assert (result == 8).all()
            whole.gate.set()
            await lone
            together = [batcher.submit(item(value), deadline=soon) for value in (5, 6, 7)]
            results = await asyncio.gather(*together)
            assert [int(result.flat[0]) for result, _ in results] == [10, 12, 14]
            assert sorted(whole.values + shared.values) == [1, 2, 3, 4, 5, 6, 7]
            assert {5, 6} <= set(shared.values)
            # Beside a large request there must be room for the next small one.
            await batcher.submit(item(8), deadline=soon, share=large_share())
            assert 8 in shared.values
        finally:
            whole.gate.set()
            await batcher.close(1)

    asyncio.run(main())


def test_the_items_of_a_large_request_do_not_begin_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in all sessions at once, each with its part of the CPUs."""
    monkeypatch.setattr(batching, "SMALL_S", 0.0)

    async def main() -> None:
        shared, whole = Doubler(), Doubler()
        batcher: Batcher[Array] = Batcher(shared, shared, max_batch=1, alone=whole)  # type: ignore[arg-type]
        batcher.start()
        share = large_share()
        try:
            shared.gate.clear()
            tasks = [ask(batcher, value, share=share) for value in (1, 2, 3)]
            for _ in range(2):
                assert await asyncio.to_thread(shared.entered.acquire, timeout=10)
            assert (sorted(shared.values), whole.values) == ([1, 2], [])
            shared.gate.set()
            await asyncio.gather(*tasks)
        finally:
            shared.gate.set()
            await batcher.close(1)

    asyncio.run(main())
