"""Crops: image and mask stay aligned, borders are void, positions decide everything."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.data import augment
from model.data.augment import AugmentConfig, Crop

PAD = np.array([1, 2, 3], np.uint8)


def checked(width: int = 60, height: int = 40) -> tuple[Image.Image, np.ndarray]:
    """A picture whose mask is the red channel."""
    ids = np.zeros((height, width), np.uint8)
    ids[10:30, 15:45] = 200
    return Image.fromarray(np.repeat(ids[..., None], 3, axis=2)), ids


def test_without_scaling_a_crop_is_a_slice() -> None:
    image, ids = checked()
    pixels, labels = augment.apply(image, ids, Crop(1.0, 5, 3, False), 33, PAD)
    assert (labels == ids[3:36, 5:38]).all()
    assert (pixels[..., 0] == labels).all()


@pytest.mark.parametrize("scale", [0.5, 0.83, 1.3, 2.0])
def test_image_and_mask_stay_aligned_at_every_scale(scale: float) -> None:
    image, ids = checked(200, 150)
    crop = augment.draw(
        np.random.default_rng(1),
        image.size,
        AugmentConfig(crop=65, min_scale=scale, max_scale=scale),
    )
    pixels, labels = augment.apply(image, ids, crop, 65, PAD)
    inside = labels != 255
    agreement = ((pixels[..., 0] > 100) == (labels == 200))[inside].mean()
    assert agreement > 0.97  # bilinear and nearest differ along the edges only


def test_what_reaches_over_the_picture_is_mean_and_void() -> None:
    image, ids = checked(20, 10)
    pixels, labels = augment.apply(image, ids, Crop(1.0, 0, 0, False), 33, PAD)
    assert (labels[10:] == 255).all()
    assert (labels[:, 20:] == 255).all()
    assert (pixels[10:] == PAD).all()
    assert (labels[:10, :20] == ids).all()


def test_a_flip_mirrors_both() -> None:
    image, ids = checked()
    plain = augment.apply(image, ids, Crop(1.0, 5, 3, False), 33, PAD)
    flipped = augment.apply(image, ids, Crop(1.0, 5, 3, True), 33, PAD)
    assert (flipped[0] == plain[0][:, ::-1]).all()
    assert (flipped[1] == plain[1][:, ::-1]).all()


def test_draws_cover_the_range_and_repeat_with_their_generator() -> None:
    config = AugmentConfig(crop=33)
    crops = [augment.draw(np.random.default_rng(seed), (60, 40), config) for seed in range(300)]
    scales = [crop.scale for crop in crops]
    assert 0.5 <= min(scales) < 0.55
    assert 1.95 < max(scales) <= 2.0
    assert 100 < sum(crop.flip for crop in crops) < 200
    assert crops[7] == augment.draw(np.random.default_rng(7), (60, 40), config)


def test_jitter_of_nothing_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    same = augment.jitter(pixels, np.random.default_rng(0), 0.0)
    assert np.abs(same.astype(int) - pixels).max() <= 1
    assert np.abs(augment.jitter(pixels, np.random.default_rng(0), 0.5) - pixels).max() > 5
