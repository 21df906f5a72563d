from __future__ import annotations

from service.client.pace import Pace


class Simulated:
    """A simulated service of `slots` servers, each of which takes a second per photo."""

    def __init__(self, slots: int, refuses_above: int | None = None) -> None:
        self.slots, self.refuses_above = slots, refuses_above
        self.now = 0.0

    def drive(self, pace: Pace, photos: int) -> list[int]:
        """Answer `count` photos; return the limit after each."""
        limits = []
        for _ in range(photos):
            if self.refuses_above is not None and pace.limit > self.refuses_above:
                pace.throttled()
            self.now += 1 / min(pace.limit, self.slots)
            pace.answered(self.now)
            limits.append(pace.limit)
        return limits


def test_pace_grows_to_what_the_service_can_use_and_no_further() -> None:
    pace = Pace()
    limits = Simulated(slots=16).drive(pace, 5000)
    settled = limits[1000:]
    assert min(settled) >= 16
    assert max(settled) <= 2 * 16


def test_pace_stays_low_for_a_service_that_works_one_by_one() -> None:
    limits = Simulated(slots=1).drive(Pace(), 1000)
    assert max(limits) <= 4
    assert limits[-1] <= 3


def test_pace_never_exceeds_its_maximum() -> None:
    limits = Simulated(slots=1000).drive(Pace(maximum=24), 3000)
    assert max(limits) == 24
    assert limits[-1] == 24


def test_refusals_halve_the_limit_once_per_window() -> None:
    pace = Pace(start=32)
    pace.throttled()
    pace.throttled()
    assert pace.limit == 16


def test_refusal_never_stops_everything() -> None:
    pace = Pace(start=1)
    pace.throttled()
    assert pace.limit == 1


def test_pace_recovers_after_refusals_end() -> None:
    service = Simulated(slots=16, refuses_above=4)
    pace = Pace()
    assert max(service.drive(pace, 1000)[200:]) <= 6
    service.refuses_above = None
    assert service.drive(pace, 5000)[-1] >= 14


def test_refusal_at_the_maximum_halves_the_limit() -> None:
    pace = Pace(maximum=8)
    Simulated(slots=100).drive(pace, 1000)
    pace.throttled()
    assert pace.limit == 4


def test_fixed_pace_never_changes() -> None:
    pace = Pace.fixed(5)
    pace.throttled()
    assert set(Simulated(slots=50).drive(pace, 500)) == {5}
