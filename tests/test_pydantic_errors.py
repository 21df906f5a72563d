"""Training and service format pydantic's errors alike: briefly, in terms of what the user wrote.

The two packages do not import each other, so each has its own formatter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.pydantic_errors import mistakes as of_training
from service.pydantic_errors import mistakes as of_service

Formatter = Callable[[ValidationError], str]

FORMATTERS = [
    pytest.param(of_training, id="model"),
    pytest.param(lambda error: of_service(error.errors()), id="service"),
]
each_formatter = pytest.mark.parametrize("mistakes", FORMATTERS)


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


class Around(BaseModel):
    outer: Outer


def error_of(model: type[BaseModel] = Outer, /, **fields: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    return caught.value


@each_formatter
def test_every_wrong_value_is_named_by_its_path(mistakes: Formatter) -> None:
    assert mistakes(error_of(inner={"size": 0}, low="x")) == (
        "inner.size=0: Input should be greater than 0; "
        "low='x': Input should be a valid integer, unable to parse string as an integer"
    )


class Choice(BaseModel):
    fit: Literal["resize", "sliding", "crop"] = "resize"
    stride: Literal[8, 16] = 16


@each_formatter
def test_the_choices_are_listed_as_they_are_written(mistakes: Formatter) -> None:
    assert mistakes(error_of(Choice, fit="x", stride=9)) == (
        "fit='x': choose from resize, sliding, crop; stride=9: choose from 8, 16"
    )


@each_formatter
def test_a_rule_of_an_inner_table_does_not_repeat_the_table(mistakes: Formatter) -> None:
    error = error_of(Around, outer={"inner": {"size": 1}, "low": 3})
    assert mistakes(error) == "outer: low=3 is above high=1"


@each_formatter
def test_a_missing_key_does_not_repeat_the_table_around_it(mistakes: Formatter) -> None:
    assert mistakes(error_of()) == "inner: Field required"


@each_formatter
def test_a_rule_over_several_keys_speaks_for_itself(mistakes: Formatter) -> None:
    assert mistakes(error_of(inner={"size": 1}, low=2)) == "low=2 is above high=1"


@each_formatter
def test_a_long_value_is_cut(mistakes: Formatter) -> None:
    message = mistakes(error_of(inner={"size": "9" * 1000 + "x"}))
    assert message.startswith("inner.size='999")
    assert len(message) < 200
