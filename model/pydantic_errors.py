"""Say what pydantic found wrong in a recipe, a checkpoint's card or a data set's description."""

from __future__ import annotations

from pydantic import ValidationError

LONGEST_VALUE = 80  # characters shown: a value may be a whole file


def mistakes(error: ValidationError) -> str:
    """Each wrong key with its value and what is valid: `momentum=2: Input should be less than 1`.

    A rule over several keys names them itself.
    """
    found = []
    for item in error.errors():
        key = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        if not key:
            found.append(message)
        elif item["type"] == "missing":  # its input is the table around it
            found.append(f"{key}: {message}")
        else:
            found.append(f"{key}={_shortened(repr(item['input']))}: {message}")
    return "; ".join(found)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
