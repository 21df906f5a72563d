"""A model for photos of every size that its contract allows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Generic, TypeVar

log = logging.getLogger("service.engine")

USES = 8  # of a size; then it gets a model of its own, which takes about as long as ten photos
MOST_MODELS = 4  # besides those of the whole input: each needs about 70 MB
WINDOW = 256  # photos; uses count half after as many

Size = tuple[int, int]  # (H, W)
Outputs = tuple[str, ...]  # names
Key = tuple[Size, Outputs]
Model = TypeVar("Model")


class Sizes(Generic[Model]):
    """Models for one size and some outputs each, and for any size; share it between threads.

    In OpenVINO a model for one size is faster than one for any, by a fifth to a quarter. The
    whole input has one from the start, other sizes get one when they are common.
    """

    def __init__(
        self,
        make: Callable[[Size | None, Outputs], Model],
        whole: Size,
        choices: Iterable[Outputs],
    ) -> None:
        """`make` makes the model for a size, or for any; `whole`: the largest size.

        `choices`: the sets of outputs that a run can ask for.
        """
        self._make, self._whole = make, whole
        self.of_whole = {outputs: make(whole, outputs) for outputs in choices}
        self._of_any: dict[Outputs, Model] = {}
        self._common: dict[Key, Model | None] = {}  # None: is being made, or cannot be made
        self._uses: Counter[Key] = Counter()
        self._photos = 0
        self._lock, self._any_lock = Lock(), Lock()

    def of(self, size: Size, outputs: Outputs) -> Model:
        """The model to run a photo of this size with.

        While a model for the size is being made, and where that fails, it is the one for any size.
        """
        if size == self._whole:
            return self.of_whole[outputs]
        key = (size, outputs)
        with self._lock:
            self._count(key)
            model = self._common.get(key)
            is_new = key not in self._common and self._is_common(key)
            if is_new:
                self._common[key] = None
        if is_new:
            model = self._made(key)
        return self._any(outputs) if model is None else model

    def _any(self, outputs: Outputs) -> Model:
        with self._any_lock:
            if outputs not in self._of_any:
                self._of_any[outputs] = self._make(None, outputs)
            return self._of_any[outputs]

    def _made(self, key: Key) -> Model | None:
        """A new model for one size; None and a line in the log where it cannot be made."""
        try:
            model = self._make(*key)
        except (RuntimeError, MemoryError) as error:
            height, width = key[0]
            log.warning(
                "no model for photos of %d x %d pixels, so they run on the slower one for any "
                "size: %s",
                width,
                height,
                error,
            )
            return None
        with self._lock:
            if key in self._common:  # not dropped in the meantime
                self._common[key] = model
        return model

    def _count(self, key: Key) -> None:
        self._uses[key] += 1
        self._photos += 1
        if self._photos % WINDOW == 0:
            self._uses = Counter({each: count // 2 for each, count in self._uses.items()})

    def _is_common(self, key: Key) -> bool:
        """Whether a size is to have a model; drops that of a much rarer size if need be."""
        uses = self._uses[key]
        if uses < USES or len(self._common) < MOST_MODELS:
            return uses >= USES
        rarest = min(self._common, key=lambda each: self._uses[each])
        if uses < USES + 2 * self._uses[rarest]:
            return False
        del self._common[rarest]
        return True
