"""Remove the class of pixels whose confidence is too low."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from postprocess.errors import InvalidOption, is_number
from postprocess.runs import Labels

VOID = 255  # no class


def min_confidences(
    value: float | str | Mapping[str, float], classes: Sequence[str], base: Sequence[float] = ()
) -> tuple[float, ...]:
    """Parse `min_confidence` into one threshold per class: 0.6, "0.6" or "cat:0.8,3:0.5".

    Classes that it does not name keep their threshold in `base`, by default 0. In a list,
    a number without a class applies to all classes. Raises InvalidOption.
    """
    given: dict[int | None, float] = {}  # by class; None: for all classes
    names = {name.lower(): index for index, name in enumerate(classes)}
    for name, text in _entries(value):
        number = _number(text)
        index = names.get(name, int(name) if name.isascii() and name.isdecimal() else -1)
        if not 0 <= number <= 1 or (name and not 0 <= index < len(classes)):
            listed = ", ".join(f"{index} {name}" for index, name in enumerate(classes))
            raise InvalidOption(
                f"min_confidence={value!r}: give a number from 0 to 1 (0.6), or one for each of "
                f"some classes (person:0.8,car:0.5); the classes are {listed}"
            )
        key = index if name else None
        if key in given:
            twice = f"the class {classes[index]}" if name else "all classes"
            raise InvalidOption(
                f"min_confidence={value!r}: two numbers from 0 to 1 are for {twice}: give one"
            )
        given[key] = number
    rest = [given[None]] * len(classes) if None in given else base or [0.0] * len(classes)
    return tuple(given.get(index, each) for index, each in enumerate(rest))


def _entries(value: float | str | Mapping[str, float]) -> list[tuple[str, float | str]]:
    """Return pairs of class and threshold; the class of a plain number is empty."""
    if isinstance(value, Mapping):
        return [(str(name).strip().lower(), number) for name, number in value.items()]
    if not isinstance(value, str):
        return [("", value)]
    # From the right: names of classes may contain a colon.
    pairs = [part.rpartition(":") for part in value.split(",") if part.strip()]
    return [((name.strip().lower() or colon) if colon else "", text) for name, colon, text in pairs]


def _number(text: float | str) -> float:
    try:
        return float(text) if isinstance(text, str) or is_number(text) else -1.0
    except ValueError:
        return -1.0


def sure_labels(
    labels: Labels, confidence: Labels, thresholds: Sequence[float], below: int
) -> Labels:
    """Replace the labels of pixels with too little confidence by `below`: (R, C) -> (R, C).

    `confidence`: the probability of each label times 255. A pixel keeps its label if that is at
    least the threshold of its class.
    """
    least = np.zeros(256, np.uint8)
    # Without the margin, 0.6 * 255 would be above 153.
    least[: len(thresholds)] = np.ceil(np.multiply(thresholds, 255) - 1e-6).clip(0, 255)
    unsure = confidence < least[labels]
    return np.where(unsure, np.uint8(below), labels) if unsure.any() else labels
