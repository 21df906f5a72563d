"""Write curves and sample overlays for TensorBoard (`--tensorboard`).

To see them, run `tensorboard --logdir RUNS`. `model/train/loggers.py` has the boards of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.checkpoint import Card
from model.data.dataset import Dataset, DatasetError, read_source
from model.evaluate.pictures import overlaid
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import served_map
from model.train.recipe import RecipeError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
SAMPLES = 4  # photos shown, the same ones during the whole run


class Board(Protocol):
    """Shows a run's curves and pictures."""

    def scalars(self, iteration: int, values: dict[str, Any]) -> None:
        """Show the numbers of a log line."""

    def overlays(self, iteration: int, net: DeepLabV3Plus, dataset: Dataset, card: Card) -> None:
        """Show a few photos with the true and the predicted mask."""

    def close(self) -> None:
        """Write what is still in memory."""


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of a log line by name; those of a nested table become `key/name`."""
    found = {}
    for key, value in values.items():
        for name, number in (value if isinstance(value, dict) else {"": value}).items():
            if isinstance(number, int | float):
                found[f"{key}/{name}" if name else key] = float(number)
    return found


def pictures(
    net: DeepLabV3Plus, dataset: Dataset, card: Card
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The first photos by name: the true mask at the left, the predicted one at the right."""
    for pair in dataset.pairs[:SAMPLES]:
        try:
            photo, truth = read_source(dataset, pair)
            maps = truth, served_map(net, photo)
            drawn = [overlaid(photo.pixels, labels, card) for labels in maps]
        except (DatasetError, OSError):  # a damaged photo must not end the training
            continue
        yield pair.name, np.concatenate([np.asarray(each) for each in drawn], axis=1)


class TensorBoard:
    """Writes below `directory/tensorboard`."""

    def __init__(self, directory: Path) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401, PLC0415 - an extra, asked for
        except ImportError as error:
            raise RecipeError(f"--tensorboard: {error}; pip install tensorboard") from error
        self.path = directory / FOLDER
        self._writer: SummaryWriter | None = None

    def scalars(self, iteration: int, values: dict[str, Any]) -> None:
        """Write the numbers of a log line."""
        writer = self._at(iteration)
        for name, number in numbers(values).items():
            writer.add_scalar(name, number, iteration)

    def overlays(self, iteration: int, net: DeepLabV3Plus, dataset: Dataset, card: Card) -> None:
        """Show `pictures`."""
        for name, both in pictures(net, dataset, card):
            self._at(iteration).add_image(name, both, iteration, dataformats="HWC")

    def close(self) -> None:
        """Write the events that are still in memory."""
        if self._writer is not None:
            self._writer.close()

    def _at(self, iteration: int) -> SummaryWriter:
        """The writer, opened at the first line: a resumed run hides events after its state."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

            self._writer = SummaryWriter(str(self.path), purge_step=iteration)
        return self._writer
