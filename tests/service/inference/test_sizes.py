"""Sizes that are common get a model of their own, and no mix of sizes makes models all the time."""

from __future__ import annotations

import random

import pytest

from service.inference import sizes
from service.inference.sizes import Size, Sizes

WHOLE = (9, 9)


@pytest.fixture
def made() -> list[Size | None]:
    """The sizes that models were made for, in order."""
    return []


@pytest.fixture
def models(made: list[Size | None]) -> Sizes[str]:
    def make(size: Size | None) -> str:
        made.append(size)
        return str(size)

    return Sizes(make, WHOLE)


def test_the_whole_input_has_a_model_from_the_start(
    models: Sizes[str], made: list[Size | None]
) -> None:
    assert models.of_whole == models.of(WHOLE) == "(9, 9)"
    assert made == [WHOLE]


def test_a_size_gets_a_model_when_it_is_common(models: Sizes[str], made: list[Size | None]) -> None:
    assert [models.of((9, 5)) for _ in range(10)] == ["None"] * 7 + ["(9, 5)"] * 3
    assert models.of((5, 9)) == "None"
    assert made == [WHOLE, None, (9, 5)]


def test_only_so_many_sizes_have_models(models: Sizes[str], made: list[Size | None]) -> None:
    """Sizes that are equally common do not take turns: making a model costs more than it gains."""
    mixed = [(9, width) for width in range(1, 9)] * 200
    random.Random(0).shuffle(mixed)
    for size in mixed:
        assert models.of(size) in {str(size), "None"}
    assert made[1] is None
    assert len(made) == 2 + sizes.MOST_SIZES


def test_a_size_that_becomes_common_replaces_the_rarest(
    models: Sizes[str], made: list[Size | None]
) -> None:
    for width in range(1, 1 + sizes.MOST_SIZES):
        for _ in range(20 + width):
            models.of((9, width))
    del made[:]
    for _ in range(sizes.WINDOW):
        models.of((9, 8))
        models.of((9, 2))
    assert made == [(9, 8)]
    assert models.of((9, 8)) == "(9, 8)"
    assert models.of((9, 1)) == "None"
    assert models.of((9, 2)) == "(9, 2)"
