"""A model for photos of every size that its contract allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from threading import Lock
from typing import Generic, TypeVar

log = logging.getLogger("service.engine")

Size = tuple[int, int]  # (H, W)
Outputs = tuple[str, ...]  # names
Model = TypeVar("Model")


class Sizes(Generic[Model]):
    """Models for one size and some outputs each, and for any size; share it between threads.

    In OpenVINO a model for one size is faster than one for any, by a fifth to a quarter, and
    in bfloat16 a few labels differ. So which one runs a photo depends on the photo's size alone,
    never on what ran before.
    """

    def __init__(
        self,
        make: Callable[[Size | None, Outputs], Model],
        whole: Size,
        common: Collection[Size],
        choices: Iterable[Outputs],
    ) -> None:
        """`make` makes the model for a size, or for any.

        `whole`: the largest size, whose models are made now; `common`: others with models of
        their own; `choices`: the sets of outputs that a run can ask for.
        """
        self._make, self._whole = make, whole
        choices = list(choices)
        self.of_whole = {outputs: make(whole, outputs) for outputs in choices}
        self._models: dict[tuple[Size | None, Outputs], Model] = {}
        sizes = [*common, None]
        self._locks = {(size, outputs): Lock() for size in sizes for outputs in choices}

    def of(self, size: Size, outputs: Outputs) -> Model:
        """The model to run a photo of this size with, which is made when it is first needed."""
        if size == self._whole:
            return self.of_whole[outputs]
        return self._model(size if (size, outputs) in self._locks else None, outputs)

    def _model(self, size: Size | None, outputs: Outputs) -> Model:
        key = (size, outputs)
        with self._locks[key]:  # photos of other sizes run meanwhile
            if key not in self._models:
                self._models[key] = self._made(size, outputs)
            return self._models[key]

    def _made(self, size: Size | None, outputs: Outputs) -> Model:
        """A new model for a size; where it cannot be made, the one for any, and a line in the log.

        It could be made later, when there is more memory, but then the labels would change.
        """
        try:
            return self._make(size, outputs)
        except (RuntimeError, MemoryError) as error:
            if size is None:
                raise
            log.warning(
                "no model for photos of %d x %d pixels, so they run on the slower one for any "
                "size: %s",
                *size[::-1],
                error,
            )
            return self._model(None, outputs)
