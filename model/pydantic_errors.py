"""Say what pydantic found wrong in a recipe, a checkpoint's card or a data set's description."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

LONGEST_VALUE = 80  # characters shown: a value may be a whole file

Keys = tuple[str, ...]  # of the tables around a key, then the key itself


def mistakes(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Each wrong key with its value and what is valid: `momentum=2: Input should be less than 1`.

    A rule over several keys names them itself. For a key that does not exist, the nearest key
    of `model` is named, or all of them where none is near.
    """
    found = []
    for item in error.errors():
        key = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"no such key{_hint(item['loc'], model)}"
        if item["type"] in {"tuple_type", "list_type"}:
            message = "a single value; give a list in brackets, as in [1, 2, 3]"
        if item["type"] == "literal_error":
            message = f"choose from {_listed(item['ctx']['expected'])}"
        if not key:
            found.append(message)
        elif isinstance(item["input"], dict):  # the table that lacks a key or breaks a rule
            found.append(f"{key}: {message}")
        else:
            found.append(f"{key}={_shortened(repr(item['input']))}: {message}")
    return "; ".join(found)


def _listed(expected: str) -> str:
    """Return `'a', 'b' or 'c'` as `a, b, c`."""
    return expected.replace(" or ", ", ").replace("'", "")


def _hint(location: tuple[int | str, ...], model: type[BaseModel] | None) -> str:
    """Name the key that was probably meant, else the keys of the same table."""
    *tables, key = (part for part in location if isinstance(part, str))  # without list indices
    paths = [] if model is None else list(_paths(model))
    siblings = [path[-1] for path in paths if path[:-1] == tuple(tables)]
    if near := get_close_matches(key, siblings, n=1):
        return f"; did you mean {'.'.join((*tables, near[0]))}?"
    elsewhere = [".".join(path) for path in paths if path[-1] == key]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return f"; the keys are {', '.join(siblings)}" if siblings else ""


def _paths(model: type[BaseModel], around: Keys = ()) -> Iterator[Keys]:
    """All keys of a model and of the models inside it."""
    for name, field in model.model_fields.items():
        yield (*around, name)
        for inner in _models(field.annotation):
            yield from _paths(inner, (*around, name))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation such as `list[TeacherConfig]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
