"""Sizes that are common get a model of their own, and no mix of sizes makes models all the time."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from service.inference import sizes
from service.inference.sizes import Outputs, Size, Sizes

WHOLE = (9, 9)
LABELS = ("labels",)


@pytest.fixture
def made() -> list[Size | None]:
    """The sizes that models were made for, in order."""
    return []


@pytest.fixture
def models(made: list[Size | None]) -> Sizes[str]:
    def make(size: Size | None, _: Outputs) -> str:
        made.append(size)
        return str(size)

    return Sizes(make, WHOLE, [LABELS])


def test_the_whole_input_has_a_model_from_the_start(
    models: Sizes[str], made: list[Size | None]
) -> None:
    assert models.of_whole[LABELS] == models.of(WHOLE, LABELS) == "(9, 9)"
    assert made == [WHOLE]


def test_a_size_gets_a_model_when_it_is_common(models: Sizes[str], made: list[Size | None]) -> None:
    assert [models.of((9, 5), LABELS) for _ in range(10)] == ["None"] * 7 + ["(9, 5)"] * 3
    assert models.of((5, 9), LABELS) == "None"
    assert made == [WHOLE, None, (9, 5)]


def test_only_so_many_sizes_have_models(models: Sizes[str], made: list[Size | None]) -> None:
    """Sizes that are equally common do not take turns: making a model costs more than it gains."""
    mixed = [(9, width) for width in range(1, 9)] * 200
    random.Random(0).shuffle(mixed)
    for size in mixed:
        assert models.of(size, LABELS) in {str(size), "None"}
    assert made[1] is None
    assert len(made) == 2 + sizes.MOST_MODELS


def test_a_size_that_becomes_common_replaces_the_rarest(
    models: Sizes[str], made: list[Size | None]
) -> None:
    for width in range(1, 1 + sizes.MOST_MODELS):
        for _ in range(20 + width):
            models.of((9, width), LABELS)
    del made[:]
    for _ in range(sizes.WINDOW):
        models.of((9, 8), LABELS)
        models.of((9, 2), LABELS)
    assert made == [(9, 8)]
    assert models.of((9, 8), LABELS) == "(9, 8)"
    assert models.of((9, 1), LABELS) == "None"
    assert models.of((9, 2), LABELS) == "(9, 2)"


def test_other_photos_run_while_a_model_is_made() -> None:
    making, may_end = Event(), Event()

    def make(size: Size | None, _: Outputs) -> str:
        if size == (9, 5):
            making.set()
            assert may_end.wait(10)
        return str(size)

    models = Sizes(make, WHOLE, [LABELS])
    with ThreadPoolExecutor() as pool:
        first = pool.submit(lambda: [models.of((9, 5), LABELS) for _ in range(sizes.USES)][-1])
        assert making.wait(10)
        assert [models.of((9, 5), LABELS), models.of((9, 7), LABELS), models.of(WHOLE, LABELS)] == [
            "None",
            "None",
            "(9, 9)",
        ]
        may_end.set()
        assert first.result() == models.of((9, 5), LABELS) == "(9, 5)"


@pytest.mark.parametrize("error", [RuntimeError("bad_alloc"), MemoryError()])
def test_a_size_whose_model_cannot_be_made_runs_on_the_one_for_any(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def make(size: Size | None, _: Outputs) -> str:
        if size == (9, 5):
            tries.append(size)
            raise error
        return str(size)

    models = Sizes(make, WHOLE, [LABELS])
    assert {models.of((9, 5), LABELS) for _ in range(3 * sizes.USES)} == {"None"}
    assert len(tries) == 1
    assert "no model for photos of 5 x 9" in caplog.text
