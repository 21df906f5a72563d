"""Which model runs a photo depends on its size alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from service.inference.sizes import Outputs, Size, Sizes

WHOLE, COMMON = (9, 9), (9, 5)
LABELS, BOTH = ("labels",), ("labels", "confidence")

Made = list[tuple[Size | None, Outputs]]


@pytest.fixture
def made() -> Made:
    """What models were made for, in order."""
    return []


@pytest.fixture
def models(made: Made) -> Sizes[str]:
    def make(size: Size | None, outputs: Outputs) -> str:
        made.append((size, outputs))
        return str(size)

    return Sizes(make, WHOLE, [COMMON], [LABELS, BOTH])


def test_the_whole_input_has_models_from_the_start(models: Sizes[str], made: Made) -> None:
    assert models.of_whole[LABELS] == models.of(WHOLE, LABELS) == "(9, 9)"
    assert made == [(WHOLE, LABELS), (WHOLE, BOTH)]


def test_a_photo_gets_the_same_model_whatever_ran_before(models: Sizes[str], made: Made) -> None:
    del made[:]
    for _ in range(50):
        assert models.of(COMMON, LABELS) == "(9, 5)"
        assert models.of((9, 6), LABELS) == models.of((9, 7), LABELS) == "None"
    assert models.of(COMMON, BOTH) == "(9, 5)"
    assert made == [(COMMON, LABELS), (None, LABELS), (COMMON, BOTH)]


def test_other_photos_run_while_a_model_is_made() -> None:
    making, may_end = Event(), Event()
    sizes = []

    def make(size: Size | None, _: Outputs) -> str:
        sizes.append(size)
        if size == COMMON:
            making.set()
            assert may_end.wait(10)
        return str(size)

    models = Sizes(make, WHOLE, [COMMON], [LABELS])
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(models.of, COMMON, LABELS) for _ in range(2)]
        assert making.wait(10)
        assert [models.of(WHOLE, LABELS), models.of((9, 7), LABELS)] == ["(9, 9)", "None"]
        may_end.set()
        assert [each.result() for each in waiting] == ["(9, 5)"] * 2
    assert sizes.count(COMMON) == 1


@pytest.mark.parametrize("error", [RuntimeError("bad_alloc"), MemoryError()])
def test_a_size_whose_model_cannot_be_made_runs_on_the_one_for_any(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """For good: a model that can be made later would change the labels."""
    tries = []

    def make(size: Size | None, _: Outputs) -> str:
        if size == COMMON:
            tries.append(size)
            raise error
        return str(size)

    models = Sizes(make, WHOLE, [COMMON], [LABELS])
    assert {models.of(COMMON, LABELS) for _ in range(10)} == {"None"}
    assert len(tries) == 1
    assert "no model for photos of 5 x 9" in caplog.text


def test_no_model_for_any_size_is_an_error() -> None:
    def make(size: Size | None, _: Outputs) -> str:
        if size != WHOLE:
            raise RuntimeError("bad_alloc")
        return str(size)

    models = Sizes(make, WHOLE, [COMMON], [LABELS])
    with pytest.raises(RuntimeError):
        models.of(COMMON, LABELS)
