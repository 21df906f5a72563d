from __future__ import annotations

import threading
from collections import Counter

import pytest

from postprocess.results import threads


@pytest.mark.parametrize(("pixels", "used"), [(threads.LARGE, 2), (threads.LARGE - 1, 1)])
def test_each_item_is_worked_on_once_in_two_threads_if_it_is_large(pixels: int, used: int) -> None:
    """Both threads wait for each other, so that neither can do all the work."""
    done, by = Counter[int](), set[int]()
    together = threading.Barrier(used, timeout=10)

    def work(item: int) -> None:
        done[item] += 1
        by.add(threading.get_ident())
        together.wait()

    threads.share(work, range(20), pixels)
    assert done == Counter(range(20))
    assert len(by) == used


@pytest.mark.parametrize("wrong", range(4))
def test_an_error_of_either_thread_is_raised(wrong: int) -> None:
    def work(item: int) -> None:
        if item == wrong:
            raise MemoryError

    with pytest.raises(MemoryError):
        threads.share(work, range(4), threads.LARGE)


def test_one_thread_does_it_all_if_no_other_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    done = list[int]()
    threads.share(done.append, range(5), threads.LARGE)
    assert sorted(done) == list(range(5))
