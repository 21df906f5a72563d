"""Say what pydantic found wrong in settings, a request or a contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

Location = tuple[int | str, ...]

OF_NUMBERS = {
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    *("float_parsing", "int_parsing", "int_parsing_size", "int_from_float", "finite_number"),
}
OF_SWITCHES = {"bool_parsing", "bool_type"}
LONGEST_VALUE = 80  # characters shown: a value may be a whole request


def mistakes(
    errors: Iterable[Mapping[str, Any]],
    *,
    name: Callable[[Location], str] = lambda where: ".".join(map(str, where)),
    whole: str = "",
    values: bool = True,
    kind: str = "key",
    known: Callable[[Location], Iterable[str]] = lambda _: (),
    bounds: Callable[[Location], str] = lambda _: "",
) -> str:
    """Each wrong part with its value and what is valid, from `error.errors()`.

    `name` turns a location into the name that the reader knows; `whole` is the name for an error
    without a location. `values=False` leaves the values out. For a part that does not exist, `kind`
    says what it is, and `known` lists the valid ones at its location: the nearest is named, or all
    where none is near. `bounds` says which numbers are allowed at a location; pydantic only names
    one end of a range.
    """
    found = []
    for item in errors:
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown {kind}{_hint(str(item['loc'][-1]), known(item['loc']))}"
        if item["type"] in OF_SWITCHES:
            message = "give true or false"
        if item["type"] == "literal_error":
            message = _choice(item["ctx"]["expected"])
        if item["type"] in OF_NUMBERS:
            message = bounds(item["loc"]) or message
        key = name(item["loc"]) if item["loc"] else whole
        if not key:  # a rule over several parts, which names them itself
            found.append(message)
        elif values and not isinstance(item.get("input"), dict):
            found.append(f"{key}={_shortened(repr(item.get('input')))}: {message}")
        else:
            found.append(f"{key}: {message}")
    return "; ".join(found)


def _hint(name: str, known: Iterable[str]) -> str:
    listed = list(known)
    if near := get_close_matches(name, listed, n=1):
        return f"; did you mean {near[0]}?"
    return f"; choose from {', '.join(listed)}" if listed else ""


def _choice(expected: str) -> str:
    """Return `'a', 'b' or 'c'` as `choose from a, b, c`, and `'a'` as `only a is allowed`."""
    listed = expected.replace(" or ", ", ").replace("'", "")
    return f"choose from {listed}" if "," in listed else f"only {listed} is allowed"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
