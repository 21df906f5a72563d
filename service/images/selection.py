"""`classes=cat,person`: the classes a client wants to see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.inference.contract import Contract

VOID = 255  # what is not selected, in masks of models without a background class


@dataclass(frozen=True)
class Selection:
    """The ids that were asked for, and the id that takes the place of all others."""

    ids: frozenset[int]
    other: int

    def apply(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The label map with every other class replaced; itself where there is none."""
        if self.ids.issuperset(range(int(labels.max()) + 1)):
            return labels
        table = np.full(256, self.other, np.uint8)
        kept = sorted(self.ids)
        table[kept] = kept
        return table[labels]


def select(text: str | None, contract: Contract) -> Selection:
    """Names or ids, as a comma list; None is all. Raises InvalidRequest naming the classes."""
    other = VOID if contract.background is None else contract.background
    if text is None:
        return Selection(frozenset(range(len(contract.classes))), other)
    names = {name.lower(): index for index, name in enumerate(contract.classes)}
    wanted = [part.strip().lower() for part in text.split(",") if part.strip()]
    ids = frozenset(_id(part, names) for part in wanted)
    if not ids or -1 in ids:
        listed = ", ".join(f"{index} {name}" for index, name in enumerate(contract.classes))
        raise InvalidRequest(f"classes={text!r}: choose names or ids of {listed}")
    return Selection(ids, other)


def _id(part: str, names: dict[str, int]) -> int:
    """The id that a name or number stands for; -1 if there is none."""
    if part in names:
        return names[part]
    number = int(part) if part.isascii() and part.isdigit() and len(part) <= 3 else -1
    return number if number < len(names) else -1
