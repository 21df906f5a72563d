"""The order of samples is a function of seed and position."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.data.augment import AugmentConfig
from model.data.dataset import UNLABELLED, VOID, DatasetError, find
from model.data.loader import (
    PARTNER,
    Batches,
    CropDataset,
    LoaderError,
    Order,
    Waiting,
    affordable_prefetch,
    balanced_weights,
    loading,
    pixel_counts,
)
from tests.model import voc_folder


def test_batches_made_ahead_fit_into_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's batch, 16 crops of 513, in Docker's default 64 MB."""
    batch = 16 * 513 * 513 * 4
    free = 64 * 2**20

    def usage(_: object) -> object:
        return shutil._ntuple_diskusage(free, 0, free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert affordable_prefetch(batch, 0) == 4
    assert affordable_prefetch(batch, 1) == 2
    assert affordable_prefetch(batch, 2) == 1
    with pytest.raises(LoaderError, match=r"67 MB free and --workers 3 needs 67 MB.*--shm-size"):
        affordable_prefetch(batch, 3)
    assert affordable_prefetch(batch // 100, 8) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two processes of torchrun share it
    with pytest.raises(LoaderError, match="--workers 1 needs 67 MB"):
        affordable_prefetch(batch, 1)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError()])
def test_a_process_that_is_killed_while_it_hands_a_batch_over_is_named(error: Exception) -> None:
    """Its connections close before the system says that it has ended."""
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()

    class HandedOver:
        _workers = (worker,)

        def __iter__(self) -> HandedOver:
            return self

        def __next__(self) -> None:
            os.kill(worker.pid or 0, signal.SIGKILL)
            raise error

    with pytest.raises(LoaderError, match=r"signal 9 \(SIGKILL\).*fewer --workers"):
        next(Waiting(HandedOver()))  # type: ignore[arg-type]


def test_every_epoch_shows_every_pair_once_in_a_new_order() -> None:
    order = Order(10, seed=3)
    first, second = ([order[i] for i in range(start, start + 10)] for start in (0, 10))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_any_position_can_be_requested_first() -> None:
    straight = Order(7, seed=1)
    sequence = [straight[position] for position in range(30)]
    assert [Order(7, seed=1)[position] for position in (29, 3, 15)] == [
        sequence[position] for position in (29, 3, 15)
    ]


def test_weights_decide_how_often_a_pair_comes() -> None:
    order = Order(4, seed=0, weights=np.array([1.0, 1.0, 1.0, 5.0]))
    counts = Counter(order[position] for position in range(4000))
    assert 2300 < counts[3] < 2700


def test_pairs_with_rare_classes_weigh_more(tmp_path: Path) -> None:
    root = voc_folder.make(tmp_path, count=3)  # classes 8, 15, 8
    weights = balanced_weights(pixel_counts(find("voc", root, "train")))
    assert np.allclose(weights, [1 / np.sqrt(2), 1.0, 1 / np.sqrt(2)])


def test_a_damaged_mask_counts_as_void_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    dataset = find("voc", voc_folder.make(tmp_path, count=3), "train")
    masks = [Path(str(pair.mask)) for pair in dataset.pairs]
    masks[1].write_bytes(masks[1].read_bytes()[:60])
    counts = pixel_counts(dataset)
    assert not counts[1].any()
    assert balanced_weights(counts)[1] > 0  # still drawn, then skipped and reported
    masks[1].unlink()
    with pytest.raises(FileNotFoundError):
        pixel_counts(dataset)


def test_a_photo_that_does_not_fit_its_mask_is_named(tmp_path: Path) -> None:
    dataset = find("voc", voc_folder.make(tmp_path), "train")
    Image.new("RGB", (9, 9)).save(dataset.pairs[0].image)
    crops = CropDataset(dataset, Order(6, seed=0), AugmentConfig(crop=33), (127.5,) * 3)
    position = next(i for i in range(6) if crops.order[i] == 0)
    with pytest.raises(DatasetError, match=r"2007_000000\.jpg is 9 x 9 .* 48 x 40"):
        crops[position]


def test_a_stream_that_starts_late_continues_the_same_stream(tmp_path: Path) -> None:
    dataset = find("voc", voc_folder.make(tmp_path), "train")
    crops = CropDataset(
        dataset, Order(len(dataset.pairs), seed=0), AugmentConfig(crop=33), (127.5,) * 3
    )
    with loading(crops, Batches(0, 4, 3), workers=0) as batches:
        whole = list(batches)
    with loading(crops, Batches(2, 4, 3), workers=0) as batches:
        rest = list(batches)
    assert len(whole) == 4
    for batch, again in zip(whole[2:], rest, strict=True):
        assert batch.images.shape == (3, 3, 33, 33)
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.labels, again.labels)


def test_processes_divide_the_positions_of_a_single_process() -> None:
    whole = list(Batches(2, 4, 6))
    shares = [list(Batches(2, 4, 6, rank=rank, ranks=3)) for rank in range(3)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole  # noqa: RUF017


def test_micro_batches_of_processes_are_those_of_a_single_process() -> None:
    (whole,) = Batches(0, 1, 8)
    shares = [next(iter(Batches(0, 1, 8, rank=rank, ranks=2, parts=2))) for rank in (0, 1)]
    assert shares == [[0, 1, 4, 5], [2, 3, 6, 7]]
    for part in (0, 1):
        together = [position for share in shares for position in share[2 * part : 2 * part + 2]]
        assert together == whole[4 * part : 4 * part + 4]


def test_mixed_and_perturbed_crops_depend_only_on_their_position(tmp_path: Path) -> None:
    dataset = find("voc", voc_folder.make(tmp_path, count=6), "train")
    config = AugmentConfig(crop=65, cutmix=0.5, strong=0.5, jitter=0.2)
    straight = CropDataset(dataset, Order(6, seed=4), config, (127.5,) * 3)
    samples = [straight[position] for position in range(24)]
    for position in (23, 2, 11):
        alone = CropDataset(dataset, Order(6, seed=4), config, (127.5,) * 3)[position]
        assert torch.equal(alone.image, samples[position].image)
        assert torch.equal(alone.label, samples[position].label)


def test_crops_with_cutmix_are_the_plain_ones_except_for_a_rectangle(tmp_path: Path) -> None:
    dataset = find("voc", voc_folder.make(tmp_path, count=3), "train")
    mixed = AugmentConfig(crop=65, cutmix=1.0)
    plain = CropDataset(dataset, Order(3, seed=4), AugmentConfig(crop=65), (127.5,) * 3)
    pasted = CropDataset(dataset, Order(3, seed=4), mixed, (127.5,) * 3)
    shares = [
        float((plain[position].image == pasted[position].image).float().mean())
        for position in range(12)
    ]
    assert all(0.2 < share < 1 for share in shares)  # all but the rectangle


def test_crops_with_mixup_lie_between_the_plain_ones(tmp_path: Path) -> None:
    """At the shares asked for, beside those with CutMix; only those with mixup have no labels."""
    dataset = find("voc", voc_folder.make(tmp_path, count=3), "train")
    plain = CropDataset(dataset, Order(3, seed=4), AugmentConfig(crop=65), (127.5,) * 3)
    both = AugmentConfig(crop=65, cutmix=0.4, mixup=0.4)
    mixed = CropDataset(dataset, Order(3, seed=4), both, (127.5,) * 3)
    blended = [at for at in range(60) if (mixed[at].label == UNLABELLED).any()]
    same = [at for at in range(60) if torch.equal(mixed[at].image, plain[at].image)]
    assert 15 <= len(blended) <= 33
    assert 5 <= len(same) <= 20
    for position in blended:
        sample, own = mixed[position], plain[position]
        assert not ((sample.label != UNLABELLED) & (sample.label != VOID)).any()
        difference = (sample.image.float() - own.image.float()).abs()
        assert 0 < float(difference.max()) <= 0.8 * 255 + 1


def test_damage_in_a_cutmix_partner_is_reported_too(tmp_path: Path) -> None:
    dataset = find("voc", voc_folder.make(tmp_path, count=3), "train")
    order = Order(3, seed=1)
    crops = CropDataset(dataset, order, AugmentConfig(crop=65, cutmix=1.0), (127.5,) * 3)
    position = next(at for at in range(9) if order[at] != order[at + PARTNER])
    photo = Path(str(dataset.pairs[order[position + PARTNER]].image))
    photo.write_bytes(photo.read_bytes()[:200])
    assert any(photo.name in reason for reason in crops[position].skipped)
