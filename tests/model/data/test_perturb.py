"""Under strong augmentation the mask changes with the photo, and only if the geometry changes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.data import perturb

PAD = np.array([10, 20, 30], np.uint8)
SEEDS = range(12)


def disc(width: int = 160, height: int = 120) -> tuple[Image.Image, np.ndarray]:
    """A black picture with a white disc in the middle, of class 7."""
    y, x = np.mgrid[:height, :width]
    ids = np.where((x - width / 2) ** 2 + (y - height / 2) ** 2 < 30**2, 7, 0).astype(np.uint8)
    return Image.fromarray(np.repeat((ids > 0)[..., None] * np.uint8(255), 3, axis=2)), ids


def warped(image: Image.Image, ids: np.ndarray, seed: int) -> tuple[Image.Image, np.ndarray]:
    """The picture and its mask, warped at random."""
    source = perturb.draw_warp(image.size, np.random.default_rng(seed))
    return perturb.warp(image, ids, source, PAD)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_warped_mask_stays_aligned_with_its_photo(seed: int) -> None:
    ids = np.zeros((120, 160), np.uint8)
    ids[20:50, 60:130] = 7  # every rotation looks different
    image = Image.fromarray(np.repeat(ids[..., None], 3, axis=2) * np.uint8(30))
    bent, labels = warped(image, ids, seed)
    assert bent.size == image.size
    assert labels.shape == ids.shape
    inside = labels != 255
    assert ((np.asarray(bent)[..., 1] > 105) == (labels == 7))[inside].mean() > 0.99


@pytest.mark.parametrize("seed", SEEDS)
def test_the_middle_stays_where_it_is(seed: int) -> None:
    _, labels = warped(*disc(), seed)
    y, x = np.nonzero(labels == 7)
    assert abs(x.mean() - 80) < 6
    assert abs(y.mean() - 60) < 6


def test_pixels_from_beyond_the_photo_are_mean_and_void() -> None:
    image, ids = disc()
    corners = 0
    for seed in SEEDS:
        bent, labels = warped(image, ids, seed)
        if labels[0, 0] == 255:
            corners += 1
            assert (np.asarray(bent)[0, 0] == PAD).all()
    assert corners > 2


def test_a_warped_photo_differs_from_draw_to_draw() -> None:
    image, ids = disc()
    masks = [warped(image, ids, seed)[1] for seed in SEEDS]
    areas = [int((mask == 7).sum()) for mask in masks]
    assert max(areas) > 1.5 * min(areas)


@pytest.mark.parametrize("change", [perturb.recolor, perturb.degrade])
def test_other_changes_keep_the_size_and_change_pixels(change) -> None:  # type: ignore[no-untyped-def]
    noise = np.random.default_rng(5).integers(0, 256, (40, 60, 3), np.uint8)
    image = Image.fromarray(noise)
    results = [change(image, np.random.default_rng(seed)) for seed in SEEDS]
    assert all(result.size == image.size and result.mode == "RGB" for result in results)
    assert all((np.asarray(result) != noise).mean() > 0.3 for result in results)
    assert (np.asarray(image) == noise).all()  # the photo itself is left alone


def test_a_change_of_hue_leaves_grey_as_it_is() -> None:
    grey = Image.new("RGB", (4, 4), (90, 90, 90))
    for seed in SEEDS:
        red, green, blue = np.asarray(perturb.recolor(grey, np.random.default_rng(seed)))[0, 0]
        assert red == green == blue


@pytest.mark.slow
def test_each_change_has_probability_one_half_and_repeats_with_its_generator() -> None:
    _, ids = disc()
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (*ids.shape, 3), np.uint8))
    draws = [perturb.perturb(image, ids, np.random.default_rng(seed), PAD) for seed in range(200)]
    bent = sum((labels != ids).any() for _, labels, _ in draws)
    untouched = sum(np.array_equal(np.asarray(photo), np.asarray(image)) for photo, _, _ in draws)
    assert 75 < bent < 125
    assert 10 < untouched < 50  # an eighth
    again = perturb.perturb(image, ids, np.random.default_rng(9), PAD)
    assert np.array_equal(np.asarray(again[0]), np.asarray(draws[9][0]))
    assert np.array_equal(again[1], draws[9][1])
