"""A model for photos of every size that its contract allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

USES = 8  # of a size; then it gets a model of its own, which takes about as long as ten photos
MOST_SIZES = 4  # besides the whole input: each needs about 70 MB
WINDOW = 256  # photos; uses count half after as many

Size = tuple[int, int]  # (H, W)
Model = TypeVar("Model")


class Sizes(Generic[Model]):
    """Models for one size each, and one for any; share it between threads.

    In OpenVINO a model for one size is faster than one for any, by a fifth to a quarter. The
    whole input has one from the start, other sizes get one when they are common.
    """

    def __init__(self, make: Callable[[Size | None], Model], whole: Size) -> None:
        """`make` makes the model for a size (H, W), or for any; `whole`: the largest size."""
        self._make, self._whole = make, whole
        self.of_whole = make(whole)
        self._of_any: Model | None = None
        self._common: dict[Size, Model] = {}
        self._uses: Counter[Size] = Counter()
        self._photos = 0
        self._lock = Lock()

    def of(self, size: Size) -> Model:
        """The model to run a photo of this size (H, W) with."""
        if size == self._whole:
            return self.of_whole
        with self._lock:
            self._count(size)
            if size not in self._common and self._is_common(size):
                self._common[size] = self._make(size)
            if size in self._common:
                return self._common[size]
            if self._of_any is None:
                self._of_any = self._make(None)
            return self._of_any

    def _count(self, size: Size) -> None:
        self._uses[size] += 1
        self._photos += 1
        if self._photos % WINDOW == 0:
            self._uses = Counter({each: count // 2 for each, count in self._uses.items()})

    def _is_common(self, size: Size) -> bool:
        """Whether a size is to have a model; drops that of a much rarer size if need be."""
        uses = self._uses[size]
        if uses < USES or len(self._common) < MOST_SIZES:
            return uses >= USES
        rarest = min(self._common, key=lambda each: self._uses[each])
        if uses < USES + 2 * self._uses[rarest]:
            return False
        del self._common[rarest]
        return True
