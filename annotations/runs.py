"""Run lengths as tools store them: COCO's, Label Studio's brush and CVAT's mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

Mask = NDArray[np.bool_]
Bits = NDArray[np.uint8]

# The lengths that a brush's run may have, in bits; a token names one of them by its index.
LENGTH_BITS = (3, 4, 8, 16)
HEADER_BITS = 32 + 5 + 4 * len(LENGTH_BITS)
CHANNELS = 4  # red, green, blue and alpha; only alpha counts


def coco_counts(text: str) -> NDArray[np.int64]:
    """Decode COCO's compressed run lengths; raises ValueError if they are broken.

    Each number is written in characters of 5 bits, the lowest first; from the fourth on it is
    the difference to the number two before it (maskApi.c, rleFrString).
    """
    codes = np.frombuffer(text.encode("latin-1", "replace"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.int64)
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the run lengths are not COCO's: a character is outside of its alphabet")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.r_[0, ends[:-1] + 1]
    if (ends - starts).max() > 6:
        raise ValueError("the run lengths are not COCO's: a number of more than 32 bits")
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << 5 * place, starts)
    negative = codes[ends] & 16 != 0
    numbers -= negative.astype(np.int64) << 5 * (ends - starts + 1)
    for first in (1, 2):  # the sums of every other number
        numbers[first::2] = np.cumsum(numbers[first::2])
    return np.asarray(numbers, np.int64)


def coco_runs(pixels: Mask, *, compressed: bool = True) -> dict[str, object]:
    """Encode pixels (H, W) as COCO's `segmentation`: `size` [H, W] and `counts`."""
    height, width = pixels.shape
    if not compressed:
        return {"size": [height, width], "counts": alternating(pixels.T.ravel()).tolist()}
    runs = coco.encode(np.asfortranarray(pixels, np.uint8))
    return {"size": [height, width], "counts": runs["counts"].decode("ascii")}


def alternating(flat: Mask) -> NDArray[np.int64]:
    """The lengths of runs of False, True, False, ...; the first may be 0."""
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.asarray(np.diff(np.r_[0, changes, len(flat)]), np.int64)


def from_alternating(counts: NDArray[np.int64], pixels: int) -> Mask:
    """The inverse of `alternating`; raises ValueError unless it gives so many pixels."""
    if len(counts) and counts.min() < 0:
        raise ValueError("the run lengths are broken: one is negative")
    if counts.sum() != pixels:
        raise ValueError(f"the run lengths make {counts.sum()} pixels instead of {pixels}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def brush(pixels: Mask) -> list[int]:
    """Encode pixels (H, W) as Label Studio's brush, a list of bytes.

    The picture is RGBA with equal channels, 255 inside. After a header come runs: a bit 1, the
    index of the length's bits, the length less one, and the value.
    """
    flat = pixels.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    starts = np.r_[0, changes]
    lengths = CHANNELS * np.diff(np.r_[starts, len(flat)])
    most = 1 << LENGTH_BITS[-1]
    pieces = -(-lengths // most)  # a run that is too long for one token becomes several
    values = np.repeat(np.where(flat[starts], 255, 0), pieces)
    token_lengths = np.full(pieces.sum(), most)
    token_lengths[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * most
    kind = np.searchsorted([1 << bits for bits in LENGTH_BITS], token_lengths)
    length_bits = np.array(LENGTH_BITS)[kind]
    tokens = (((4 | kind) << length_bits) | (token_lengths - 1)) << 8 | values
    header = _bits(len(flat) * CHANNELS, 32) + _bits(8 - 1, 5)
    header += "".join(_bits(bits - 1, 4) for bits in LENGTH_BITS)
    body = _packed(tokens.astype(np.int64), 3 + length_bits + 8)
    bits = np.concatenate([np.array([*map(int, header)], np.uint8), body])
    packed: list[int] = np.packbits(bits).tolist()
    return packed


def brush_pixels(data: Sequence[int], width: int, height: int) -> Mask:
    """Decode Label Studio's brush, (H, W); raises ValueError if it is broken or of another size."""
    try:
        text = "".join(np.unpackbits(np.array(data, np.uint8)).astype("U1"))
    except (OverflowError, TypeError) as error:
        raise ValueError(f"the brush is no list of bytes: {error}") from None
    if len(text) < HEADER_BITS:
        raise ValueError("the brush is cut")
    count, word = int(text[:32], 2), int(text[32:37], 2) + 1
    if count != width * height * CHANNELS:
        raise ValueError(f"the brush has {count // CHANNELS} pixels instead of {width * height}")
    sizes = [int(text[at : at + 4], 2) + 1 for at in range(37, HEADER_BITS, 4)]
    try:
        values = _brush_values(text, count, word, sizes)
    except (ValueError, IndexError):
        raise ValueError("the brush is cut") from None
    return np.asarray(values.reshape(height, width, CHANNELS)[..., 3] > 0)


def _brush_values(text: str, count: int, word: int, sizes: list[int]) -> NDArray[np.int64]:
    values = np.zeros(count, np.int64)
    at, done = HEADER_BITS, 0
    while done < count:
        size = sizes[int(text[at + 1 : at + 3], 2)]
        length = int(text[at + 3 : at + 3 + size], 2) + 1
        is_run = text[at] == "1"
        at += 3 + size
        for _ in range(1 if is_run else length):
            values[done : done + (length if is_run else 1)] = int(text[at : at + word], 2)
            at += word
            done += length if is_run else 1
        if at > len(text):
            raise ValueError("cut")
    return values


def cvat_runs(pixels: Mask) -> list[int]:
    """Encode the pixels of a box as CVAT's mask: runs of 0 and 1 along its rows."""
    counts: list[int] = alternating(pixels.ravel()).tolist()
    return counts


def cvat_pixels(counts: Sequence[int], width: int, height: int) -> Mask:
    """Decode CVAT's mask, (H, W); raises ValueError if it is broken."""
    if width < 1 or height < 1:
        raise ValueError(f"a mask of {width} x {height} pixels")
    return from_alternating(np.array(counts, np.int64), width * height).reshape(height, width)


def _bits(number: int, width: int) -> str:
    return f"{number:0{width}b}"


def _packed(numbers: NDArray[np.int64], widths: NDArray[np.int64]) -> Bits:
    """The bits of each number in its width, one after another."""
    ends = np.cumsum(widths)
    place = np.repeat(ends, widths) - 1 - np.arange(ends[-1])  # from the number's last bit
    return (np.repeat(numbers, widths) >> place & 1).astype(np.uint8)
