from __future__ import annotations

import io

from service.client.progress import Counts, Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_terminal_sees_a_bar_with_rate_eta_and_failures() -> None:
    clock, screen, counts = Clock(), Terminal(), Counts()
    progress = Progress(counts, screen, clock)
    progress.total = 100
    clock.now, counts.sent, counts.rejected, counts.failed = 5.0, 47, 2, 1
    progress.update()
    assert screen.getvalue().endswith(
        "████████████············ 50/100  10.0/s  ETA 0:05  3 failures"
    )


def test_terminal_is_not_drawn_more_often_than_eyes_can_follow() -> None:
    clock, screen = Clock(), Terminal()
    progress = Progress(Counts(), screen, clock)
    for _ in range(1000):
        clock.now += 0.001
        progress.update()
    assert screen.getvalue().count("\r") <= 10


def test_note_leaves_no_remains_of_the_bar() -> None:
    clock, screen = Clock(), Terminal()
    progress = Progress(Counts(), screen, clock)
    progress.note("cat.jpg: broken")
    assert "\r\x1b[Kcat.jpg: broken\n" in screen.getvalue()


def test_log_gets_plain_lines_now_and_then() -> None:
    clock, log, counts = Clock(), io.StringIO(), Counts()
    progress = Progress(counts, log, clock)
    progress.total = 200
    for counts.sent in range(1, 101):
        clock.now += 0.25
        progress.update()
    progress.close()
    assert log.getvalue().splitlines() == [
        "40/200  4.0/s  ETA 0:40",
        "80/200  4.0/s  ETA 0:30",
        "100/200  4.0/s  ETA 0:25",
    ]


def test_a_log_does_not_get_its_last_line_twice() -> None:
    clock, log, counts = Clock(), io.StringIO(), Counts()
    progress = Progress(counts, log, clock)
    clock.now, counts.sent = 10.0, 5
    progress.update()
    progress.close()
    assert log.getvalue() == "5/?  0.5/s\n"


def test_repeats_are_not_part_of_the_total() -> None:
    progress = Progress(Counts(sent=9, repeated=1), io.StringIO(), Clock())
    progress.total = 11
    assert progress.line() == "9/10  0.0/s"


def test_run_that_ends_before_its_first_photo_leaves_no_progress() -> None:
    log, screen = io.StringIO(), Terminal()
    for stream in (log, screen):
        progress = Progress(Counts(), stream, Clock())
        progress.total = 10
        progress.close()
    assert log.getvalue() == ""
    assert screen.getvalue() == "\r\x1b[K"


def test_unknown_total_gives_no_eta() -> None:
    progress = Progress(Counts(sent=3), io.StringIO(), Clock())
    assert progress.line() == "3/?  0.0/s"


def test_skipped_photos_do_not_raise_the_rate() -> None:
    clock, counts = Clock(), Counts()
    progress = Progress(counts, io.StringIO(), clock)
    clock.now, counts.skipped, counts.sent = 10.0, 5000, 10
    progress.update()
    assert progress.rate() == 1.0


def test_rate_follows_the_last_half_minute() -> None:
    clock, counts = Clock(), Counts()
    progress = Progress(counts, io.StringIO(), clock)
    for second in range(1, 601):
        clock.now = second
        counts.sent += 100 if second <= 300 else 1
        progress.update()
    assert progress.rate() == 1.0


def test_durations_are_printed_in_readable_units() -> None:
    assert [duration(s) for s in (0, 59.6, 3599, 7389)] == ["0:00", "1:00", "59:59", "2:03:09"]
