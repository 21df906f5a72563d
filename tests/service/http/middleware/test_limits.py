"""Slots, bytes and pixels are reserved exactly as long as they are in use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from service.errors import Overloaded
from service.http.middleware.limits import GRACE_S, Admission


def test_bytes_are_counted_until_they_are_released() -> None:
    """A single body is allowed at any size; the last quarter is for small ones."""
    mib = 2**20
    admission = Admission(9, 100, max_bytes=8 * mib)
    admission.hold(10 * mib)
    with pytest.raises(Overloaded, match="10485760 bytes of requests and answers"):
        admission.hold(1)
    admission.release(10 * mib)
    admission.hold(4 * mib)
    admission.hold(2 * mib)
    with pytest.raises(Overloaded):
        admission.hold(mib + 1)
    admission.hold(mib)
    admission.hold(mib)
    with pytest.raises(Overloaded):
        admission.hold(1)
    assert admission.bytes == 8 * mib


def test_parts_of_a_body_count_together() -> None:
    """A body that is alone may grow; one beside another is refused when both are too large."""
    mib = 2**20
    admission = Admission(9, 100, max_bytes=4 * mib)
    for part in range(6):
        admission.hold(mib, held=part * mib)
    admission.release(6 * mib)
    admission.hold(mib)
    admission.hold(2 * mib)
    with pytest.raises(Overloaded):
        admission.hold(mib, held=2 * mib)


def test_slow_readers_lose_their_answers_when_others_need_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The slowest first, only as many as needed, and none that has just begun."""
    clock = [0.0]
    monkeypatch.setattr("service.http.middleware.limits.time.monotonic", lambda: clock[0])
    mib, dropped = 2**20, list[str]()
    admission = Admission(9, 100, max_bytes=12 * mib)
    with ExitStack() as answers:
        made = {}
        for name in ("slow", "slower", "fast"):
            admission.hold(2 * mib)
            answer = admission.reading(2 * mib, partial(dropped.append, name))
            made[name] = answers.enter_context(answer)
        admission.hold(3 * mib)
        with pytest.raises(Overloaded):  # they have just begun
            admission.hold(mib + 1)
        clock[0] = 1
        made["slow"].taken()
        clock[0] = GRACE_S + 2
        made["fast"].taken()
        admission.hold(mib + 1)
        assert dropped == ["slower"]
        admission.hold(2 * mib - 1)
        assert dropped == ["slower", "slow"]
        with pytest.raises(Overloaded):
            admission.hold(2 * mib)
    assert admission.bytes == 3 * mib + 3 * mib  # what was dropped is not released again


async def settled(claim: Callable[[], bool]) -> bool:
    for _ in range(200):
        if claim():
            return True
        await asyncio.sleep(0.01)
    return claim()


def test_a_single_image_is_always_allowed_and_a_second_must_fit() -> None:
    admission = Admission(max_requests=9, max_pixels=100)
    with admission.claim(1000), pytest.raises(Overloaded):
        admission.claim(1)
    with admission.claim(60), admission.claim(40):
        assert admission.pixels == 100
    assert admission.pixels == 0


def test_memory_is_taken_until_its_abandoned_thread_ends() -> None:
    async def scenario() -> None:
        admission, gate = Admission(9, 100), threading.Event()
        entered, never = threading.Event(), threading.Event()

        def hold() -> None:
            entered.set()
            gate.wait(10)

        async def request(work: Callable[[], object]) -> None:
            with admission.claim(10) as claim:
                await claim.work(pool, work)

        with ThreadPoolExecutor(1) as pool:
            running = asyncio.create_task(request(hold))
            assert await asyncio.to_thread(entered.wait, 10)
            queued = asyncio.create_task(request(never.set))
            await asyncio.sleep(0)
            for task in (running, queued):
                task.cancel()
            await asyncio.gather(running, queued, return_exceptions=True)
            assert await settled(lambda: admission.pixels == 10)  # the queued one never runs
            gate.set()
            assert await settled(lambda: admission.pixels == 0)
        assert not never.is_set()

    asyncio.run(scenario())


def test_a_failure_in_a_thread_reaches_the_request_and_frees_its_memory() -> None:
    async def scenario() -> None:
        admission = Admission(9, 100)
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(ZeroDivisionError), admission.claim(10) as claim:
                await claim.work(pool, lambda: 1 // 0)
            assert await settled(lambda: admission.pixels == 0)

    asyncio.run(scenario())
