"""The training stream: which sample comes when, and the batches made of it.

A run is one long sequence of positions 0, 1, 2, ... Which pair stands at a
position, and how it is cropped, depends on the seed and the position alone, so
a resumed run goes on with exactly the samples an uninterrupted one would see, and
several processes share the samples that one would see. Where a file cannot be
decoded, the pair of the next readable position takes its place.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from model.data import augment
from model.data.augment import AugmentConfig, LabeledCrop
from model.data.dataset import Dataset, DatasetError, read_mask, read_pair
from model.data.perturb import perturb

T = TypeVar("T")


def pixel_counts(dataset: Dataset) -> NDArray[np.int64]:
    """Pixels of each class in each mask, (pairs, K); reads every mask once.

    A damaged mask counts as void: the training skips it, and tells.
    """
    classes = len(dataset.classes)
    counts = np.zeros((len(dataset.pairs), classes), np.int64)
    for row, pair in enumerate(dataset.pairs):
        try:
            ids = read_mask(pair.mask, classes=classes, void=dataset.void)
        except OSError as error:
            expect_damage(error)
            continue
        counts[row] = np.bincount(ids.ravel(), minlength=256)[:classes]
    return counts


def balanced_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weight of each pair: the inverse square root of how many pairs hold its rarest class."""
    present = counts > 0
    rarity = 1 / np.sqrt(np.maximum(1, present.sum(axis=0)))
    weights = (present * rarity).max(axis=1)
    return np.asarray(np.where(weights > 0, weights, rarity.min()))  # all void: as the commonest


class Order:
    """The endless order of samples: position -> index of a pair."""

    def __init__(self, pairs: int, seed: int, weights: NDArray[np.float64] | None = None) -> None:
        self.pairs = pairs
        self.seed = seed
        self.chances = None if weights is None else weights / weights.sum()
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.pairs)
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # a sample's own and its partner's are asked for in turn
                del self._epochs[min(self._epochs)]
            rng = np.random.default_rng([self.seed, 0, epoch])
            self._epochs[epoch] = (
                rng.permutation(self.pairs)
                if self.chances is None
                else rng.choice(self.pairs, self.pairs, p=self.chances)
            )
        return int(self._epochs[epoch][offset])


class Sample(NamedTuple):
    """One training example, and what could not be read on the way to it."""

    image: Tensor  # (3, S, S) uint8
    label: Tensor  # (S, S) uint8, or a class id
    skipped: tuple[str, ...] = ()  # why, for each pair that it replaces


class Batch(NamedTuple):
    """The examples of one process in one iteration."""

    images: Tensor  # (N, 3, S, S) uint8
    labels: Tensor  # (N, S, S) uint8, or (N,) class ids
    skipped: list[str]

    @staticmethod
    def of(samples: list[Sample]) -> Batch:
        """Stack samples; made in the loader's workers."""
        images, labels, skipped = zip(*samples, strict=True)
        return Batch(
            torch.stack(images), torch.stack(labels), [line for s in skipped for line in s]
        )


class Samples(Protocol):
    """What a loader reads: samples by position in the run."""

    def __getitem__(self, position: int) -> Sample: ...


def expect_damage(error: OSError) -> None:
    """Raise the error again where the system's own number says that a file is missing."""
    if error.errno is not None:
        raise error


PARTNER = 1_000_003  # positions from a sample to the one that CutMix pastes onto it
ATTEMPTS = 20  # positions tried for one sample: many damaged files in a row are no accident


def first_readable(position: int, read: Callable[[int], T]) -> tuple[T, tuple[str, ...]]:
    """What `read` makes of the first position that is not damaged, and the reasons before it.

    Raises DatasetError where one position after the other is damaged, and OSError
    where a file is missing, which is no damage.
    """
    skipped: list[str] = []
    for at in range(position, position + ATTEMPTS):
        try:
            return read(at), tuple(skipped)
        except OSError as error:
            expect_damage(error)
            skipped.append(str(error))
    raise DatasetError(
        f"{ATTEMPTS} samples in a row cannot be read, the last is {skipped[-1]}; "
        "run python -m model.data check"
    )


class CropDataset(TorchDataset[Sample]):
    """Training crops by position in the run."""

    def __init__(
        self, dataset: Dataset, order: Order, config: AugmentConfig, mean: tuple[float, ...]
    ) -> None:
        self.dataset = dataset
        self.order = order
        self.config = config
        self.pad = np.round(np.array(mean)).astype(np.uint8)

    def __getitem__(self, position: int) -> Sample:
        """Return the crop (3, S, S) uint8 and its labels (S, S) uint8.

        Raises DatasetError where photo and mask do not belong together, and
        where one position after the other is damaged.
        """
        # Cropped as this position is, so that the next one shows another crop of the pair.
        rng = np.random.default_rng([self.order.seed, 1, position])
        crop, skipped = self._crop(position, rng)
        if self.config.cutmix and rng.random() < self.config.cutmix:
            other, others_skipped = self._crop(position + PARTNER, rng)
            crop = augment.cutmix(crop, other, rng)
            skipped += others_skipped
        pixels, labels = crop
        image_tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        return Sample(image_tensor, torch.from_numpy(labels), skipped)

    def _crop(self, position: int, rng: np.random.Generator) -> tuple[LabeledCrop, tuple[str, ...]]:
        """The augmented pixels and labels of one position, and what was skipped before it."""
        dataset, order, config = self.dataset, self.order, self.config
        (image, mask), skipped = first_readable(
            position, lambda at: read_pair(dataset, dataset.pairs[order[at]])
        )
        strong = config.strong > 0 and rng.random() < config.strong
        if strong:
            image, mask = perturb(image, mask, rng, self.pad)
        where = augment.draw(rng, image.size, config)
        pixels, labels = augment.apply(image, mask, where, config.crop, self.pad)
        if config.jitter and not strong:
            pixels = augment.jitter(pixels, rng, config.jitter)
        return (pixels, labels), skipped


class Batches:
    """A batch sampler: one process's positions of each iteration from `start` to `stop`.

    Process `rank` of `ranks` takes its slice of each of the `parts` that an
    iteration's `batch` positions are cut into: the micro-batches of all
    processes together are those of a single one.
    """

    def __init__(
        self, start: int, stop: int, batch: int, *, rank: int = 0, ranks: int = 1, parts: int = 1
    ) -> None:
        self.start, self.stop, self.batch = start, stop, batch
        size, share = batch // parts, batch // parts // ranks
        self.offsets = [
            part * size + rank * share + i for part in range(parts) for i in range(share)
        ]

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in range(self.start, self.stop):
            yield [iteration * self.batch + offset for offset in self.offsets]

    def __len__(self) -> int:
        return self.stop - self.start


def _leave_signals_to_the_parent(_: int) -> None:
    """Schedulers and terminals signal the whole group; the trainer saves, then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def loading(samples: Samples, batches: Batches, workers: int) -> Iterator[Iterator[Batch]]:
    """Iterate over batches of samples (uint8) in the order of `batches`.

    The workers end with the context. Left to the interpreter's exit they would
    not: a traceback may hold the iterator until then, and SIGTERM they ignore.
    """
    loader = DataLoader(
        cast("TorchDataset[Batch]", samples),
        batch_sampler=batches,
        collate_fn=Batch.of,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_parent,
    )
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        if workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
