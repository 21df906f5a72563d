"""Errors name what the user wrote, and do not repeat huge values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.pydantic_errors import mistakes


class Inner(BaseModel):
    size: int = Field(gt=0)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _in_order(self) -> Outer:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


def errors_of(**fields: Any) -> Sequence[Any]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(fields)
    return caught.value.errors()


def test_every_wrong_value_is_named_by_its_path() -> None:
    found = mistakes(errors_of(inner={"size": 0}, low="x"))
    assert found == (
        "inner.size=0: Input should be greater than 0; "
        "low='x': Input should be a valid integer, unable to parse string as an integer"
    )


def test_a_missing_key_does_not_repeat_the_table_around_it() -> None:
    assert mistakes(errors_of()) == "inner: Field required"


def test_a_rule_over_several_keys_speaks_for_itself_unless_the_whole_has_a_name() -> None:
    errors = errors_of(inner={"size": 1}, low=2)
    assert mistakes(errors) == "low=2 is above high=1"
    assert mistakes(errors, whole="body", values=False) == "body: low=2 is above high=1"


def test_a_long_value_is_cut() -> None:
    found = mistakes(errors_of(inner={"size": "9" * 1000 + "x"}))
    assert found.startswith("inner.size='999")
    assert len(found) < 200


def test_names_and_kinds_can_be_the_readers_own() -> None:
    found = mistakes(
        errors_of(inner={"size": 1}, extra=3), name=lambda where: f"--{where[-1]}", kind="flag"
    )
    assert found == "--extra=3: unknown flag"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("lwo", "lwo=3: unknown key; did you mean low?"),
        ("extra", "extra=3: unknown key; choose from inner, low, high"),
    ],
)
def test_an_unknown_key_names_the_nearest_or_all(key: str, says: str) -> None:
    errors = errors_of(inner={"size": 1}, **{key: 3})
    assert mistakes(errors, known=lambda _: Outer.model_fields) == says
