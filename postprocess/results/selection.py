"""Parse `classes=cat,person`, the selection of classes, and apply it to label maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postprocess.errors import InvalidOption
from postprocess.results.facts import Facts
from postprocess.sureness import VOID


@dataclass(frozen=True)
class Selection:
    """The selected ids, and the id that replaces all others."""

    ids: frozenset[int]
    other: int  # void if the model has no class `background`
    classes: int  # of the model; higher labels are void
    named: bool = False  # whether the client has named classes

    def apply(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Replace all other classes in a label map; return it unchanged if it has none."""
        if not self.named:
            return labels
        table = np.full(256, self.other, np.uint8)
        kept = sorted(self.ids)
        table[kept] = kept
        table[self.classes :] = VOID
        return table[labels]


def select(text: str | None, contract: Facts) -> Selection:
    """Parse comma-separated names or ids; None selects all. Raises InvalidOption."""
    other = VOID if contract.background is None else contract.background
    count = len(contract.classes)
    if text is None:
        return Selection(frozenset(range(count)), other, count)
    names = {name.lower(): index for index, name in enumerate(contract.classes)}
    wanted = [part.strip().lower() for part in text.split(",") if part.strip()]
    ids = frozenset(_id(part, names) for part in wanted)
    if not ids or -1 in ids:
        listed = ", ".join(f"{index} {name}" for index, name in enumerate(contract.classes))
        raise InvalidOption(f"classes={text!r}: choose names or ids of {listed}")
    return Selection(ids, other, count, named=True)


def _id(part: str, names: dict[str, int]) -> int:
    """Return the id for a name or number, -1 if there is none."""
    if part in names:
        return names[part]
    number = int(part) if part.isascii() and part.isdigit() and len(part) <= 3 else -1
    return number if number < len(names) else -1
