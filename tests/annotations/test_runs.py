"""Run lengths agree with the code of the tools: pycocotools, cvat-sdk, Label Studio's decoder."""

from __future__ import annotations

import cvat_sdk.masks
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from annotations import runs

Mask = NDArray[np.bool_]
SIZES = [(1, 1), (1, 9), (7, 1), (13, 17), (40, 61)]


def masks() -> list[Mask]:
    """In every size: noise of several densities, a full mask and an empty one."""
    rng = np.random.default_rng(3)
    noise = [rng.random(size) < density for size in SIZES for density in (0.1, 0.5, 0.9)]
    return [*noise, np.zeros((5, 6), bool), np.ones((5, 6), bool)]


def decode_rle(data: list[int]) -> NDArray[np.uint8]:
    """label_studio_sdk.converter.brush.decode_rle of release 2.1.2 (Apache-2.0), shortened."""
    bits, at = "".join(f"{byte:08b}" for byte in data), 0

    def read(size: int) -> int:
        nonlocal at
        at += size
        return int(bits[at - size : at], 2)

    num, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    i, out = 0, np.zeros(num, np.uint8)
    while i < num:
        x = read(1)
        j = i + 1 + read(sizes[read(2)])
        if x:
            out[i:j] = read(word)
            i = j
        else:
            while i < j:
                out[i] = read(word)
                i += 1
    return out


@pytest.mark.parametrize("pixels", masks())
def test_coco_counts_are_those_that_pycocotools_encodes(pixels: Mask) -> None:
    encoded = coco.encode(np.asfortranarray(pixels, np.uint8))
    counts = runs.coco_counts(encoded["counts"].decode())
    assert (runs.from_alternating(counts, pixels.size) == pixels.T.ravel()).all()
    assert runs.coco_runs(pixels)["counts"] == encoded["counts"].decode()
    plain = runs.coco_runs(pixels, compressed=False)
    assert coco.frPyObjects(plain, *plain["size"])["counts"] == encoded["counts"]  # type: ignore[misc]


def test_long_runs_survive_the_compression() -> None:
    """Neighbouring run lengths differ by more than 16 bits, in both directions."""
    pixels = np.zeros((700, 900), bool)
    pixels[:, 300:800] = True
    pixels[5, 850] = True
    encoded = coco.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode()
    assert (
        pixels == runs.from_alternating(runs.coco_counts(encoded), pixels.size).reshape(900, 700).T
    ).all()


@pytest.mark.parametrize("text", ["\x01", "~~", "P", "oooooooooo0"])
def test_broken_counts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not COCO's"):
        runs.coco_counts(text)


@pytest.mark.parametrize("pixels", masks())
def test_label_studio_reads_our_brushes_and_we_read_its(pixels: Mask) -> None:
    height, width = pixels.shape
    data = runs.brush(pixels)
    assert ((decode_rle(data).reshape(height, width, 4)[..., 3] == 255) == pixels).all()
    assert (runs.brush_pixels(data, width, height) == pixels).all()


def test_a_brush_of_long_runs_is_read_by_label_studio() -> None:
    """Runs of more than 2 ** 16 values take several tokens."""
    pixels = np.zeros((300, 400), bool)
    pixels[100:250] = True
    pixels[7, 9] = True
    assert ((decode_rle(runs.brush(pixels)).reshape(300, 400, 4)[..., 3] > 0) == pixels).all()
    assert (runs.brush_pixels(runs.brush(pixels), 400, 300) == pixels).all()


def test_a_brush_of_single_values_is_read() -> None:
    """Label Studio does not set the run bit for a single value.

    In the browser it may also write several different values after one length.
    """
    bits = f"{4:032b}" + f"{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    bits += "0" + "00" + f"{3:03b}" + "".join(f"{value:08b}" for value in (1, 2, 3, 200))
    data = [int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8)]
    assert decode_rle(data).tolist() == [1, 2, 3, 200]
    assert runs.brush_pixels(data, 1, 1).tolist() == [[True]]


@pytest.mark.parametrize("cut", [0, 5, 8, 20])
def test_a_truncated_brush_is_refused(cut: int) -> None:
    data = runs.brush(np.eye(30, dtype=bool))
    with pytest.raises(ValueError, match="brush is cut"):
        runs.brush_pixels(data[:cut], 30, 30)


def test_a_brush_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="16 pixels instead of 20"):
        runs.brush_pixels(runs.brush(np.ones((4, 4), bool)), 5, 4)


@pytest.mark.parametrize("pixels", [each for each in masks() if each.any()])
def test_cvat_reads_our_masks_and_we_read_its(pixels: Mask) -> None:
    height, width = pixels.shape
    counts = runs.cvat_runs(pixels)
    encoded = [*counts, 0, 0, width - 1, height - 1]
    theirs = cvat_sdk.masks.decode_mask(encoded, image_width=width, image_height=height)
    assert (theirs == pixels).all()
    of_cvat = cvat_sdk.masks.encode_mask(pixels, [0, 0, width, height])
    assert (runs.cvat_pixels([int(n) for n in of_cvat[:-4]], width, height) == pixels).all()
