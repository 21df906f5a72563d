"""The error for an unknown key names the key that was probably meant."""

from __future__ import annotations

import pytest

from model.pydantic_errors import mistakes
from tests.test_pydantic_errors import Inner, Outer, error_of


class Listed(Outer):
    rows: list[Inner] | None = None


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("lwo", "lwo=1: no such key; did you mean low?"),
        ("size", "size=1: no such key; did you mean inner.size or rows.size?"),
        ("other", "other=1: no such key; the keys are inner, low, high, rows"),
    ],
    ids=["misspelt", "of another table", "no similar key"],
)
def test_an_unknown_key_names_the_one_that_was_probably_meant(key: str, says: str) -> None:
    error = error_of(Listed, inner={"size": 1}, **{key: 1})
    assert mistakes(error, Listed) == says
    assert mistakes(error) == f"{key}=1: no such key"


def test_a_single_value_in_place_of_a_list_is_explained() -> None:
    error = error_of(Listed, inner={"size": 1}, rows=0.485)
    assert mistakes(error) == "rows=0.485: a single value; give a list in brackets, as in [1, 2, 3]"
