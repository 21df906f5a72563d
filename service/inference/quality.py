"""Several operating points of one network, and the choice between them for each request.

The points are models of the folder, named by --quality from the most accurate to the cheapest, such
as a network exported at output stride 8, at 16, and in 8 bits. A request with `quality=auto` gets
the most accurate point that

- the load allows: with n points the k-th while fewer than k / n of the request slots are taken,
- and that is expected to answer within half of the time that the request has left.

If no point fulfils both, the request gets the cheapest one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.inference.batcher import Batcher
from service.inference.contract import Contract
from service.inference.engine import Prediction

SPARE = 0.5  # share of the time left, for decoding, encoding and delays


@dataclass(frozen=True)
class Choice:
    """A point and its position: 1 is the most accurate one of `points`."""

    name: str
    place: int
    points: int

    def __str__(self) -> str:
        return f"{self.place}/{self.points}"


def choose(expected_s: Sequence[float], load: float, remaining_s: float) -> int:
    """Return the index of the point for a request.

    `expected_s`: for each point, the most accurate first, the seconds until it would have run.
    `load`: share of the request slots that are taken, 0 to 1.
    """
    points = len(expected_s)
    for index, seconds in enumerate(expected_s):
        if load < (index + 1) / points and seconds <= remaining_s * SPARE:
            return index
    return points - 1


class Quality:
    """The points of a service."""

    def __init__(self, names: Sequence[str], batcher: Callable[[str], Batcher[Prediction]]) -> None:
        """`names`: the models, the most accurate first; `batcher` returns a model's batcher."""
        self.names = tuple(names)
        self.chosen = Counter(dict.fromkeys(self.names, 0))  # requests, by model
        self._batcher = batcher

    def choice(self, load: float, remaining_s: float) -> Choice:
        """Return the point for a request; see `choose`."""
        batchers = [self._batcher(name) for name in self.names]
        waiting_s = sum(each.waiting_s for each in batchers)  # they share the CPUs or the GPU
        expected = [waiting_s + each.item_s for each in batchers]
        index = choose(expected, load, remaining_s)
        self.chosen[self.names[index]] += 1
        return Choice(self.names[index], index + 1, len(self.names))


def mismatch(name: str, contract: Contract, other: str, others: Contract) -> str | None:
    """Say why two models cannot be points of one network, or None."""
    if contract.classes != others.classes:
        return f"--quality: {name} has other classes than {other}: list exports of one network"
    if contract.input.samples != others.input.samples:
        return f"--quality: {name} takes other channels than {other}: list exports of one network"
    return None
