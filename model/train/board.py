"""Write curves and sample overlays for TensorBoard (`--tensorboard`).

To see them, run `tensorboard --logdir RUNS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.checkpoint import Card
from model.data.dataset import Dataset, DatasetError, read_pair
from model.evaluate.pictures import overlaid
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import served_map
from model.train.recipe import RecipeError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
SAMPLES = 4  # photos shown, the same ones during the whole run


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
        """Write the numbers of a log line; those of a nested table become `key/name`."""
        writer = self._at(iteration)
        for key, value in values.items():
            table = value if isinstance(value, dict) else {"": value}
            for name, number in table.items():
                if isinstance(number, int | float):
                    writer.add_scalar(f"{key}/{name}" if name else key, number, iteration)

    def overlays(self, iteration: int, net: DeepLabV3Plus, dataset: Dataset, card: Card) -> None:
        """Show the first photos: the true mask at the left, the predicted one at the right."""
        for pair in dataset.pairs[:SAMPLES]:
            try:
                picture, truth = read_pair(dataset, pair)
            except (DatasetError, OSError):  # a picture less to look at ends no training
                continue
            photo = np.asarray(picture)
            pictures = [overlaid(photo, labels, card) for labels in (truth, served_map(net, photo))]
            both = np.concatenate([np.asarray(picture) for picture in pictures], axis=1)
            self._at(iteration).add_image(pair.name, both, iteration, dataformats="HWC")

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
