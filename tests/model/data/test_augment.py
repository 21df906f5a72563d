"""Crops keep image and mask aligned, have void beyond the picture, and can be repeated."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

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


def test_pixels_beyond_the_picture_are_mean_and_void() -> None:
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


def test_zero_jitter_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    same = augment.jitter(pixels, np.random.default_rng(0), 0.0)
    assert np.abs(same.astype(int) - pixels).max() <= 1
    assert np.abs(augment.jitter(pixels, np.random.default_rng(0), 0.5) - pixels).max() > 5


def test_cutmix_pastes_a_rectangle_at_the_same_position() -> None:
    side, photo = 100, (60, 80)  # the photo's rows and columns; beyond is void
    mine = np.full((side, side, 3), 10, np.uint8), np.full((side, side), 255, np.uint8)
    mine[1][: photo[0], : photo[1]] = 1
    ramp = np.arange(side * side, dtype=np.int64).reshape(side, side) % 251
    other = np.repeat(ramp.astype(np.uint8)[..., None], 3, axis=2), np.full_like(mine[1], 2)
    for seed in range(30):
        place = augment.rectangle(mine[1], np.random.default_rng(seed))
        assert place is not None
        pixels, labels = augment.paste(mine, other, place)
        rows, columns = np.nonzero(labels == 2)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width  # a full rectangle
        assert 0.28 * photo[0] < height <= 0.8 * photo[0]
        assert 0.28 * photo[1] < width <= 0.8 * photo[1]
        assert rows.max() < photo[0]
        assert columns.max() < photo[1]
        pasted = labels == 2
        assert (pixels[pasted] == other[0][pasted]).all()
        assert (pixels[~pasted] == 10).all()
    assert (mine[0] == 10).all()
    assert not (mine[1] == 2).any()


def test_cutmix_leaves_a_crop_of_void_alone() -> None:
    void = np.zeros((33, 33, 3), np.uint8), np.full((33, 33), 255, np.uint8)
    assert augment.rectangle(void[1], np.random.default_rng(0)) is None


def test_mixup_is_the_weighted_mean_without_labels() -> None:
    rng = np.random.default_rng(0)
    first, second = (
        (rng.integers(0, 256, (5, 5, 3), np.uint8), rng.integers(0, 21, (5, 5)).astype(np.uint8))
        for _ in range(2)
    )
    first[1][0, 0] = second[1][1, 1] = 255
    pixels, labels = augment.blend(first, second, 0.75)
    assert np.abs(0.75 * first[0] + 0.25 * second[0] - pixels).max() <= 0.5
    assert labels[0, 0] == labels[1, 1] == 255
    assert (labels == 254).sum() == 23


def test_shares_of_cutmix_and_mixup_together_are_at_most_one() -> None:
    AugmentConfig(cutmix=0.5, mixup=0.5)
    with pytest.raises(ValidationError, match="together at most 1"):
        AugmentConfig(cutmix=0.6, mixup=0.5)
