"""Callers of the formatter choose its words: names of keys, of the whole, and what a key is."""

from __future__ import annotations

import pytest

from service.pydantic_errors import mistakes
from tests.test_pydantic_errors import Outer, error_of


def test_the_whole_can_have_a_name_and_values_can_be_left_out() -> None:
    """This is for rules over several keys, whose errors have no key."""
    errors = error_of(inner={"size": 1}, low=2).errors()
    assert mistakes(errors, whole="body", values=False) == "body: low=2 is above high=1"


def test_names_and_kinds_can_be_the_readers_own() -> None:
    errors = error_of(inner={"size": 1}, extra=3).errors()
    found = mistakes(errors, name=lambda where: f"--{where[-1]}", kind="flag")
    assert found == "--extra=3: unknown flag"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("lwo", "lwo=3: unknown key; did you mean low?"),
        ("extra", "extra=3: unknown key; choose from inner, low, high"),
    ],
)
def test_an_unknown_key_names_the_nearest_or_all(key: str, says: str) -> None:
    errors = error_of(inner={"size": 1}, **{key: 3}).errors()
    assert mistakes(errors, known=lambda _: Outer.model_fields) == says
