"""A model for photos of every size that its contract allows."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

USES = 8  # of a size; then it gets a model of its own, which takes about as long as ten photos
MOST_SIZES = 4  # besides the whole input: each needs up to 100 MB

Size = tuple[int, int]  # (H, W)
Model = TypeVar("Model")


class Sizes(Generic[Model]):
    """Models for one size each, and one for any; share it between threads.

    A model for one size is faster than one for any: by a tenth in ONNX Runtime, by a third in
    OpenVINO. The whole input has one from the start, other sizes get one when they are common.
    """

    def __init__(self, make: Callable[[Size | None], Model], whole: Size) -> None:
        """`make` makes the model for a size (H, W), or for any; `whole`: the largest size."""
        self._make, self._whole = make, whole
        self.of_whole = make(whole)
        self._of_any: Model | None = None
        self._common: OrderedDict[Size, Model] = OrderedDict()  # last used: last
        self._uses: Counter[Size] = Counter()
        self._lock = Lock()

    def of(self, size: Size) -> Model:
        """The model to run a photo of this size (H, W) with."""
        if size == self._whole:
            return self.of_whole
        with self._lock:
            found = self._common.get(size)
            if found is not None:
                self._common.move_to_end(size)
                return found
            self._uses[size] += 1
            if self._uses[size] >= USES:
                return self._promoted(size)
            if self._of_any is None:
                self._of_any = self._make(None)
            return self._of_any

    def _promoted(self, size: Size) -> Model:
        """Make a model for this size, in place of the one that was not used for longest."""
        del self._uses[size]
        if len(self._common) >= MOST_SIZES:
            self._common.popitem(last=False)
        self._common[size] = self._make(size)
        return self._common[size]
