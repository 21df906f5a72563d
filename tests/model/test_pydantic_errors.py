"""Mistakes are named by what the reader wrote, and a huge value is not repeated."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.pydantic_errors import mistakes


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


def found(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(fields)
    return mistakes(caught.value)


def test_every_wrong_value_is_named_by_its_path() -> None:
    assert found(inner={"size": 0}, low="x") == (
        "inner.size=0: Input should be greater than 0; "
        "low='x': Input should be a valid integer, unable to parse string as an integer"
    )


def test_a_missing_key_does_not_repeat_the_table_around_it() -> None:
    assert found() == "inner: Field required"


def test_a_rule_over_several_keys_speaks_for_itself() -> None:
    assert found(inner={"size": 1}, low=2) == "low=2 is above high=1"


def test_a_long_value_is_cut() -> None:
    message = found(inner={"size": "9" * 1000 + "x"})
    assert message.startswith("inner.size='999")
    assert len(message) < 200


def test_a_key_that_does_not_exist_is_answered_with_the_one_probably_meant() -> None:
    """A slip of the pen, a key of another table, and nothing near."""

    class Listed(Outer):
        rows: list[Inner] | None = None

    cases = {
        "lwo": "lwo=1: no such key; did you mean low?",
        "size": "size=1: no such key; did you mean inner.size or rows.size?",
        "other": "other=1: no such key; the keys are inner, low, high, rows",
    }
    for key, says in cases.items():
        with pytest.raises(ValidationError) as caught:
            Listed.model_validate({"inner": {"size": 1}, key: 1})
        assert mistakes(caught.value, Listed) == says
        assert mistakes(caught.value) == f"{key}=1: no such key"
