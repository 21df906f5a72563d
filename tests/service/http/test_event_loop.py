"""The event loop's turns are measured on two clocks."""

from __future__ import annotations

import asyncio
import time

from service.bench import turns
from service.http.event_loop import MeasuredLoop


def _counts(loop: MeasuredLoop, clock: str) -> dict[str, float]:
    return dict(loop.turns[clock].buckets())


def test_a_turn_that_blocks_is_measured_on_the_wall_and_not_on_the_processor() -> None:
    """A sleep of 60 ms in a coroutine blocks the loop, and takes no processor time."""

    async def scenario() -> None:
        await asyncio.sleep(0)
        time.sleep(0.06)
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=MeasuredLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, MeasuredLoop)
        before = _counts(loop, "wall")
        runner.run(scenario())
        wall = _counts(loop, "wall")
    assert (wall["+Inf"] - wall["0.05"]) - (before["+Inf"] - before["0.05"]) >= 1
    assert loop.turns["wall"].sum_s - loop.turns["processor"].sum_s > 0.05


def test_waiting_for_events_is_no_turn() -> None:
    """A loop that sleeps for 60 ms is in no turn for at least 50 ms of its life."""
    began = time.monotonic()
    with asyncio.Runner(loop_factory=MeasuredLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, MeasuredLoop)
        runner.run(asyncio.sleep(0.06))
        lived_s = time.monotonic() - began
        assert 0 < loop.turns["wall"].sum_s < lived_s - 0.05


def test_the_longest_turn_between_two_readings_is_bounded() -> None:
    """Only turns after the first reading count; beyond the last bound there is none."""
    line = 'deeplab_event_loop_turn_seconds_bucket{{clock="{}",le="{}"}} {}\n'

    def text(*counts: int) -> str:
        found = zip(("0.001", "0.2", "+Inf"), counts, strict=True)
        other = line.format("wall", "+Inf", 99)
        return other + "".join(line.format("processor", *each) for each in found)

    before = turns.read(text(5, 6, 6))
    assert turns.longest_ms(before, turns.read(text(5, 6, 6))) == 0
    assert turns.longest_ms(before, turns.read(text(9, 10, 10))) == 1
    assert turns.longest_ms(before, turns.read(text(9, 11, 11))) == 200
    assert turns.longest_ms(before, turns.read(text(9, 11, 12))) == float("inf")
