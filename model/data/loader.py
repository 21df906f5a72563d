"""The training stream: which sample comes when, and the batches made of it.

A run is one long sequence of positions 0, 1, 2, ... Which pair stands at a
position, and how it is cropped, depends on the seed and the position alone, so
a resumed run goes on with exactly the samples an uninterrupted one would see.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from model.data import augment
from model.data.augment import AugmentConfig
from model.data.dataset import Dataset, DatasetError, read_mask
from model.data.photo import open_photo

Sampling = Literal["uniform", "balanced"]


def balanced_weights(dataset: Dataset) -> NDArray[np.float64]:
    """Weight of each pair: the inverse square root of how many pairs hold its rarest class."""
    present = np.zeros((len(dataset.pairs), len(dataset.classes)), bool)
    for row, pair in enumerate(dataset.pairs):
        ids = np.unique(read_mask(pair.mask, classes=len(dataset.classes), void=dataset.void))
        present[row, ids[ids < len(dataset.classes)]] = True
    rarity = 1 / np.sqrt(np.maximum(1, present.sum(axis=0)))
    weights = (present * rarity).max(axis=1)
    return np.asarray(np.where(weights > 0, weights, rarity.min()))  # all void: as the commonest


class Order:
    """The endless order of samples: position -> index of a pair."""

    def __init__(self, pairs: int, seed: int, weights: NDArray[np.float64] | None = None) -> None:
        self.pairs = pairs
        self.seed = seed
        self.chances = None if weights is None else weights / weights.sum()
        self._epoch = -1
        self._indices: NDArray[np.int64] = np.empty(0, np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.pairs)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, 0, epoch])
            self._indices = (
                rng.permutation(self.pairs)
                if self.chances is None
                else rng.choice(self.pairs, self.pairs, p=self.chances)
            )
            self._epoch = epoch
        return int(self._indices[offset])

    def partner(self, rng: np.random.Generator) -> int:
        """Draw a pair to paste from: of weighted ones by the square, so the rarest come most."""
        if self.chances is None:
            return int(rng.integers(self.pairs))
        squares = self.chances**2
        return int(rng.choice(self.pairs, p=squares / squares.sum()))


class CropDataset(TorchDataset[tuple[Tensor, Tensor]]):
    """Training crops by position in the run.

    Raises DatasetError when objects shall be pasted and class 0 is not the background.
    """

    def __init__(
        self, dataset: Dataset, order: Order, config: AugmentConfig, mean: tuple[float, ...]
    ) -> None:
        if config.paste and dataset.classes[0] != "background":
            raise DatasetError(
                f"augment.paste={config.paste}: class 0 of {dataset.name!r} is "
                f"{dataset.classes[0]!r}, not 'background'; set augment.paste=0"
            )
        self.dataset = dataset
        self.order = order
        self.config = config
        self.pad = np.round(np.array(mean)).astype(np.uint8)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """Return the crop (3, S, S) uint8 and its labels (S, S) uint8."""
        rng = np.random.default_rng([self.order.seed, 1, position])
        pixels, labels = self._crop(self.order[position], rng)
        if self.config.paste and rng.random() < self.config.paste:
            augment.paste((pixels, labels), self._crop(self.order.partner(rng), rng))
        if self.config.jitter:
            pixels = augment.jitter(pixels, rng, self.config.jitter)
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels)

    def _crop(
        self, index: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Draw a crop of one pair: (S, S, 3) and (S, S) uint8."""
        pair = self.dataset.pairs[index]
        image = open_photo(pair.image)
        mask = read_mask(pair.mask, classes=len(self.dataset.classes), void=self.dataset.void)
        if mask.shape != (image.height, image.width):
            raise DatasetError(
                f"{pair.image} is {image.width} x {image.height} pixels, its mask {pair.mask} "
                f"is {mask.shape[1]} x {mask.shape[0]}: make them equal, or leave the pair out"
            )
        crop = augment.draw(rng, image.size, self.config)
        return augment.apply(image, mask, crop, self.config.crop, self.pad)


class Batches:
    """A batch sampler: the positions of each iteration from `start` to `stop`."""

    def __init__(self, start: int, stop: int, batch: int) -> None:
        self.start, self.stop, self.batch = start, stop, batch

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in range(self.start, self.stop):
            yield list(range(iteration * self.batch, (iteration + 1) * self.batch))

    def __len__(self) -> int:
        return self.stop - self.start


def _leave_signals_to_the_parent(_: int) -> None:
    """Schedulers and terminals signal the whole group; the trainer saves, then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def loader(
    crops: CropDataset, *, start: int, stop: int, batch: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches (N, 3, S, S) and (N, S, S) uint8 for iterations `start` to `stop`."""
    return DataLoader(
        crops,
        batch_sampler=Batches(start, stop, batch),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_parent,
    )
