"""Choose the order of training samples and make batches of them.

A run is one long sequence of positions 0, 1, 2, ... The seed and the position alone
decide which pair stands at a position and how it is cropped. So a resumed run sees
exactly the samples of an uninterrupted one, and several processes share the samples
that one would see. If a file cannot be decoded, the pair of the next readable
position takes its place.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from model.data import augment, soft
from model.data.augment import AugmentConfig, LabeledCrop
from model.data.dataset import UNLABELLED, Dataset, DatasetError, read_mask, read_pair
from model.data.perturb import perturb
from model.data.photo import Picture, open_picture
from model.data.soft import Floats, SoftLabels
from pixels.bands import PHOTO
from pixels.bands import Samples as Channels

T = TypeVar("T")

log = logging.getLogger("model.train")

SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 4  # batches that each loader process makes ahead
POLL_S = 1.0  # between two checks for signals and dead processes, while waiting for a batch
JOIN_S = 5.0  # for a killed process to end
LOST_AFTER_S = 300.0  # a batch that takes longer is lost: no disk is so slow
ROOM = (
    "a container has 64 MB unless it is started with more (docker run --shm-size=1g); "
    "--workers 0 needs none"
)


class LoaderError(RuntimeError):
    """The loader processes cannot deliver; the message says what to change."""


class StillLoading(Exception):
    """No batch has come yet: check the processes and signals, then wait again."""


def pixel_counts(dataset: Dataset) -> NDArray[np.int64]:
    """Pixels of each class in each mask, (pairs, K); reads every mask once.

    A damaged mask counts as void; the training will skip and log it.
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
    """One training example, and the files that could not be read before it."""

    image: Tensor  # (C, S, S) uint8
    label: Tensor  # (S, S) uint8, or a class id
    skipped: tuple[str, ...] = ()  # why, for each pair that it replaces
    soft: Tensor | None = None  # (K, M, M) float32: the teachers' probabilities at the logits


class Batch(NamedTuple):
    """A batch: the examples of one process in one iteration."""

    images: Tensor  # (N, C, S, S) uint8
    labels: Tensor  # (N, S, S) uint8, or (N,) class ids
    skipped: list[str]
    soft: Tensor | None = None  # (N, K, M, M) float32

    @staticmethod
    def of(samples: list[Sample]) -> Batch:
        """Stack samples; made in the loader's workers.

        Raises LoaderError where shared memory is full.
        """
        images, labels, skipped, answers = zip(*samples, strict=True)
        batch = Batch(
            torch.stack(images),
            torch.stack(labels),
            [line for s in skipped for line in s],
            None if answers[0] is None else torch.stack(answers),
        )
        return batch if get_worker_info() is None else batch.shared()

    def shared(self) -> Batch:
        """The same batch in shared memory.

        PyTorch would do this later, in a thread whose errors reach nobody: the batch would be
        lost and the training would wait for ever.
        """
        try:
            for tensor in filter(torch.is_tensor, self):
                tensor.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise LoaderError(
                f"a batch of {self.images.nbytes / 1e6:.1f} MB cannot be put into shared memory, "
                f"{SHARED_MEMORY}: {ROOM} ({str(error).splitlines()[0]})"
            ) from None
        return self


class Samples(Protocol):
    """The samples that a loader reads, by position in the run."""

    @property
    def sample_bytes(self) -> int:
        """Size of one sample's image and label."""

    def __getitem__(self, position: int) -> Sample: ...


def expect_damage(error: OSError) -> None:
    """Raise the error again if its errno says that a file is missing or not readable."""
    if error.errno is not None:
        raise error


PARTNER = 1_000_003  # positions from a sample to the one that CutMix pastes onto it
MIXUP = (0.2, 0.8)  # shares of a crop in its mean with another
ATTEMPTS = 20  # positions tried for one sample: many damaged files in a row are no accident


def first_readable(position: int, read: Callable[[int], T]) -> tuple[T, tuple[str, ...]]:
    """Read the first position that is not damaged; also return why earlier ones were skipped.

    Raises DatasetError if many positions in a row are damaged, and OSError if a
    file is missing.
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


@dataclass(frozen=True)
class UnlabelledPhotos:
    """Photos without labels, in place of a data set's pairs."""

    paths: tuple[Path, ...]
    samples: Channels = PHOTO


Source = Dataset | UnlabelledPhotos


def photos(source: Source) -> tuple[Path, ...]:
    """The photos of a source, by index."""
    if isinstance(source, UnlabelledPhotos):
        return source.paths
    return tuple(pair.image for pair in source.pairs)


def read_example(source: Source, index: int) -> tuple[Picture, NDArray[np.uint8]]:
    """A photo and its class ids (H, W), UNLABELLED where it has none; errors as of `read_pair`."""
    if isinstance(source, Dataset):
        return read_pair(source, source.pairs[index])
    image = open_picture(source.paths[index], source.samples)
    return image, np.full((image.height, image.width), UNLABELLED, np.uint8)


class Example(NamedTuple):
    """A crop on its way into a sample."""

    crop: LabeledCrop
    soft: Floats | None  # (K, M, M)
    skipped: tuple[str, ...]


class CropDataset(TorchDataset[Sample]):
    """Training crops by position in the run."""

    def __init__(
        self,
        source: Source,
        order: Order,
        config: AugmentConfig,
        mean: tuple[float, ...],
        soft_labels: SoftLabels | None = None,
    ) -> None:
        self.source = source
        self.photos = photos(source)
        self.order = order
        self.config = config
        self.pad = np.round(np.array(mean)).astype(np.uint8)
        self.soft_labels = soft_labels

    @property
    def sample_bytes(self) -> int:
        """A byte of each channel and one of label for each pixel, four for each soft label."""
        labels = self.soft_labels
        soft_bytes = 0 if labels is None else 4 * labels.classes * labels.side**2
        return (len(self.pad) + 1) * self.config.crop**2 + soft_bytes

    def __getitem__(self, position: int) -> Sample:
        """Return the crop (C, S, S) uint8 and its labels (S, S) uint8, hard and, if any, soft.

        Raises DatasetError if photo and mask have different sizes, and if many
        positions in a row are damaged.
        """
        # Cropped as this position is, so that the next one shows another crop of the pair.
        rng = np.random.default_rng([self.order.seed, 1, position])
        example = self._example(position, rng)
        cutmix, mixup = self.config.cutmix, self.config.mixup
        if cutmix + mixup and (chance := rng.random()) < cutmix + mixup:
            other = self._example(position + PARTNER, rng)
            mixed = self._pasted if chance < cutmix else self._blended
            example = mixed(example, other, rng)
        pixels, labels = example.crop
        return Sample(
            torch.from_numpy(pixels).permute(2, 0, 1),
            torch.from_numpy(labels),
            example.skipped,
            None if example.soft is None else torch.from_numpy(example.soft),
        )

    def _pasted(self, example: Example, other: Example, rng: np.random.Generator) -> Example:
        """The example with a rectangle of the other pasted over it (CutMix)."""
        skipped = example.skipped + other.skipped
        place = augment.rectangle(example.crop[1], rng)
        if place is None:
            return example._replace(skipped=skipped)
        answers = example.soft
        if answers is not None and other.soft is not None:
            answers = soft.paste(answers, other.soft, place, self.config.crop)
        return Example(augment.paste(example.crop, other.crop, place), answers, skipped)

    def _blended(self, example: Example, other: Example, rng: np.random.Generator) -> Example:
        """The weighted mean of two examples (mixup)."""
        share = float(rng.uniform(*MIXUP))
        crop = augment.blend(example.crop, other.crop, share)
        return Example(crop, None, example.skipped + other.skipped)

    def _example(self, position: int, rng: np.random.Generator) -> Example:
        """The augmented crop of one position, and the files skipped before it."""
        config = self.config
        (index, (image, mask)), skipped = first_readable(position, self._read)
        size = image.size
        source = None
        strong = config.strong > 0 and rng.random() < config.strong
        if strong and isinstance(image, Image.Image):  # the recipe refuses it for other pictures
            image, mask, source = perturb(image, mask, rng, self.pad)
        where = augment.draw(rng, size, config)
        pixels, labels = augment.apply(image, mask, where, config.crop, self.pad)
        if config.jitter and not strong:
            pixels = augment.jitter(pixels, rng, config.jitter)
        answers = None
        if self.soft_labels is not None:
            answers = soft.of_crop(
                self.soft_labels,
                self.photos[index],
                where,
                size=size,
                side=config.crop,
                source=source,
            )
        return Example((pixels, labels), answers, skipped)

    def _read(self, position: int) -> tuple[int, tuple[Picture, NDArray[np.uint8]]]:
        index = self.order[position]
        return index, read_example(self.source, index)


class MixedCrops(TorchDataset[Sample]):
    """Two streams in one: of any positions in a row, a share comes from the second."""

    def __init__(self, first: Samples, second: Samples, share: float) -> None:
        self.first, self.second, self.share = first, second, share

    @property
    def sample_bytes(self) -> int:
        """Size of the larger of the two's samples."""
        return max(self.first.sample_bytes, self.second.sample_bytes)

    def __getitem__(self, position: int) -> Sample:
        """Return the next sample of the stream whose turn it is."""
        before, after = int(position * self.share), int((position + 1) * self.share)
        return self.second[before] if after > before else self.first[position - before]


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


def affordable_prefetch(batch_bytes: int, workers: int) -> int:
    """The number of batches that each process may prepare so that all fit into shared memory.

    Raises LoaderError if not even one fits.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return PREFETCH
    free = shutil.disk_usage(SHARED_MEMORY).free
    on_this_host = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's
    batches = free // max(1, batch_bytes * on_this_host) - 1  # one is being trained on
    if batches < workers:
        need = (workers + 1) * batch_bytes * on_this_host
        raise LoaderError(
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free and --workers {workers} needs "
            f"{need / 1e6:.0f} MB, for batches of {batch_bytes / 1e6:.1f} MB: {ROOM}"
        )
    if batches < workers * PREFETCH:
        log.warning(
            "%s has %.0f MB free: each loader process makes %d batches of %.1f MB ahead, "
            "not %d; %s",
            SHARED_MEMORY,
            free / 1e6,
            batches // workers,
            batch_bytes / 1e6,
            PREFETCH,
            ROOM,
        )
    return min(PREFETCH, batches // workers)


class Waiting:
    """Batches of loader processes, waited for in steps of POLL_S.

    `next` raises StillLoading after each step, and LoaderError where a process has ended or
    a batch is lost.
    """

    def __init__(self, loader: DataLoader[Batch]) -> None:
        # Death of a process is noticed here, while a batch is waited for: PyTorch's own handler
        # of SIGCHLD would raise in whatever line the training has reached.
        before = signal.getsignal(signal.SIGCHLD)
        self.batches = iter(loader)
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
        self.since: float | None = None  # a batch is being waited for
        self.told = False

    def __iter__(self) -> Waiting:
        return self

    def __next__(self) -> Batch:
        if self.since is None:
            self.since = time.monotonic()
        try:
            batch = cast("Batch", next(self.batches))
        except LoaderError:
            raise
        except RuntimeError as error:
            self._explain(error, waited=time.monotonic() - self.since)
            raise
        except (ConnectionError, EOFError):  # a process ended while it handed a batch over
            if self._has_ended(JOIN_S):
                raise LoaderError(self._ended()) from None
            raise
        self.since, self.told = None, False
        return batch

    def _explain(self, error: RuntimeError, waited: float) -> None:
        """Turn a RuntimeError of PyTorch about the processes into a LoaderError with advice."""
        says = str(error)
        if says.startswith("DataLoader timed out"):
            if waited > LOST_AFTER_S:
                raise LoaderError(
                    f"no batch came in {waited:.0f} s: the disk of the data set does not answer, "
                    f"or {SHARED_MEMORY} is full ({ROOM})"
                ) from None
            if waited > LOST_AFTER_S / 10 and not self.told:
                self.told = True
                log.warning("no batch for %.0f s: is the disk of the data set slow?", waited)
            raise StillLoading from None
        if says.startswith("DataLoader worker"):
            raise LoaderError(self._ended()) from None

    @property
    def _workers(self) -> list[BaseProcess]:
        return self.batches._workers  # type: ignore[attr-defined,no-any-return]

    def _has_ended(self, within: float) -> bool:
        """Return whether a process ends within seconds; its exit code is known then."""
        ready = connection.wait([worker.sentinel for worker in self._workers], within)
        for worker in self._workers:
            if worker.sentinel in ready:
                worker.join(JOIN_S)  # the sentinel is ready a moment before the exit code
        return bool(ready)

    def _ended(self) -> str:
        codes = [worker.exitcode for worker in self._workers if worker.exitcode]
        code = codes[0] if codes else 0
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"status {code}"
        if -code == signal.SIGBUS:
            return f"a loader process ended by {how}: {SHARED_MEMORY} is full; {ROOM}"
        return (
            f"a loader process ended by {how}: the system does so when memory is short; "
            "take fewer --workers, --workers 0, or a smaller batch_size or augment.crop"
        )

    def end(self) -> None:
        """End the processes, even those that hang in a read; they ignore SIGTERM."""
        if self.since is not None:  # they do not answer
            for worker in self._workers:
                worker.kill()
        self.batches._shutdown_workers()  # type: ignore[attr-defined]
        for worker in self._workers:
            worker.kill()
            worker.join(JOIN_S)


@contextmanager
def loading(samples: Samples, batches: Batches, workers: int) -> Iterator[Iterator[Batch]]:
    """Iterate over batches of samples (uint8) in the order of `batches`.

    With workers, `next` raises StillLoading every second in which there is no batch. The workers
    end with the context. They would not end when the interpreter exits: a traceback may hold the
    iterator until then, and they ignore SIGTERM. Raises LoaderError where shared memory has no room
    for a batch.
    """
    prefetch = affordable_prefetch(samples.sample_bytes * len(batches.offsets), workers)
    loader = DataLoader(
        cast("TorchDataset[Batch]", samples),
        batch_sampler=batches,
        collate_fn=Batch.of,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=prefetch if workers else None,
        timeout=POLL_S if workers else 0,
        worker_init_fn=_leave_signals_to_the_parent,
    )
    if not workers:
        yield iter(loader)
        return
    waiting = Waiting(loader)
    try:
        yield waiting
    finally:
        waiting.end()
