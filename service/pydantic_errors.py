"""Say what pydantic found wrong in settings, a request or a contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

Location = tuple[int | str, ...]

LONGEST_VALUE = 80  # characters shown: a value may be a whole request


def mistakes(
    errors: Iterable[Mapping[str, Any]],
    *,
    name: Callable[[Location], str] = lambda where: ".".join(map(str, where)),
    whole: str = "",
    values: bool = True,
    messages: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Each wrong part with its value and what is valid, from `error.errors()`.

    `name` turns a location into the name that the reader knows; `whole` names what
    an error without a location is about. `values=False` leaves the values out.
    `messages` replaces pydantic's text for a type of error.
    """
    found = []
    for item in errors:
        message = messages.get(item["type"], item["msg"].removeprefix("Value error, "))
        key = name(item["loc"]) if item["loc"] else whole
        if not key:  # a rule over several parts, which names them itself
            found.append(message)
        elif values and item["type"] != "missing":
            found.append(f"{key}={_shortened(repr(item.get('input')))}: {message}")
        else:
            found.append(f"{key}: {message}")
    return "; ".join(found)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
