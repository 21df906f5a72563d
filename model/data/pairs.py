"""Pairs of photos and masks, and what the values in a mask mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model import files
from model.data.photo import PhotoFile, Picture, Size, open_picture, opened
from model.text import TextError, read_text
from pixels.bands import PHOTO, Samples

VOID = 255
UNLABELLED = 254  # in training: a pixel of a photo without labels; beyond the photo, VOID
LOSSY = ("JPEG", "MPO")  # Pillow's names for the content of a file, whatever its suffix
LOSSY_MASK = (
    "a {} file by its content, whatever its name says: JPEG changes the values along borders; "
    "save the masks anew as PNG"
)
MASK_MODES = ("P", "L", "1")  # Pillow's names for 8-bit palette, 8-bit gray and 1-bit pictures

Color = tuple[int, int, int]


class DatasetError(ValueError):
    """A data set is missing or incomplete, or does not fit its description."""


@dataclass(frozen=True)
class Coding:
    """A translation of mask values to class ids, for masks whose values are not class ids."""

    ids: bytes  # 256 class ids, by mask value; 255 where the value stands for no class
    void: frozenset[int]  # the values that mean void; others without a class are mistakes

    @classmethod
    def of(cls, ids: dict[int, int], void: frozenset[int] = frozenset({VOID})) -> Coding:
        """Make the table of {mask value: class id}."""
        return cls(bytes(ids.get(value, VOID) for value in range(256)), void)


@dataclass(frozen=True)
class CodedMask:
    """A mask file whose values are not class ids; `read_mask` translates them."""

    path: Path
    coding: Coding

    def __str__(self) -> str:
        return str(self.path)

    def is_file(self) -> bool:
        """Whether the file exists."""
        return self.path.is_file()


Mask = Path | CodedMask


@dataclass(frozen=True)
class Pair:
    """One photo with its mask; `name` is the stem that lists and submissions use."""

    name: str
    image: Path
    mask: Mask


@dataclass(frozen=True)
class Dataset:
    """A split of a data set: its pairs and what their mask values mean."""

    name: str
    split: str
    pairs: tuple[Pair, ...]
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    # Mask values that are ignored (void); all values >= len(classes) are void too.
    void: int = VOID
    # For `check` on masks of colours: the colours of void, and whether the palette belongs
    # to the set or was only chosen for display.
    void_colors: tuple[Color, ...] = ()
    own_palette: bool = True
    samples: Samples = PHOTO  # channels of the photos: more than 3 are bands of TIFF files
    # Oddities of the folders, for `check` to report.
    notes: tuple[str, ...] = ()

    def thinned(self, count: int) -> Dataset:
        """The set with that many of its photos, evenly spread over the list."""
        total = len(self.pairs)
        count = min(count, total)
        return replace(self, pairs=tuple(self.pairs[i * total // count] for i in range(count)))


def meanings(dataset: Dataset, mask: Mask) -> dict[int, int]:
    """The class id, or 255 for void, of each mask value that has a meaning."""
    if isinstance(mask, CodedMask):
        coding = mask.coding
        return dict.fromkeys(coding.void, VOID) | {
            value: index for value, index in enumerate(coding.ids) if index != VOID
        }
    return {value: value for value in range(len(dataset.classes))} | {
        VOID: VOID,
        dataset.void: VOID,
    }


def home(root: Path, places: Sequence[str], mark: str) -> Path:
    """The first of `places` below `root` that contains `mark`, else the first place."""
    below = [root / place for place in places]
    return next((folder for folder in below if (folder / mark).exists()), below[0])


def expect_inside(name: str, key: str) -> None:
    """Raise DatasetError for a path or name that leaves the data set's folder.

    Only the text is checked: a link inside the folder may lead to another disk.
    """
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise DatasetError(
            f"{key}={name!r} leaves the data set's folder: name a path inside it, "
            "which may be a link"
        )


def read_names(path: Path) -> list[str]:
    """Read a list of names, one per line; raises DatasetError naming the lists that exist."""
    if not path.is_file():
        splits = sorted(p.stem for p in path.parent.glob("*.txt"))
        raise DatasetError(f"{path} does not exist; splits found beside it: {splits or 'none'}")
    # Names may hold spaces; editors on Windows put a mark before the first.
    try:
        lines = read_text(path).splitlines()
    except TextError as error:
        raise DatasetError(str(error)) from None
    names = [line.strip() for line in lines if line.strip()]
    for name in names:
        expect_inside(name, path.name)
    return names


def read_mask(mask: Mask, *, classes: int, void: int = VOID) -> NDArray[np.uint8]:
    """Read a mask of class ids, (H, W) uint8, with every id that is no class set to 255.

    Raises DatasetError for an RGB mask, whose colours are not class ids, and
    OSError for a file that cannot be read.
    """
    _, ids = read_values(mask)
    if isinstance(mask, CodedMask):
        ids = np.frombuffer(mask.coding.ids, np.uint8)[ids]
    return np.where((ids < classes) & (ids != void), ids, np.uint8(VOID))


def expect_samples(dataset: Dataset, samples: Samples) -> None:
    """Raise DatasetError where a data set's channels are not those of a network."""
    for key, ours, theirs in zip(
        ("channels", "sample_range"), samples, dataset.samples, strict=True
    ):
        if ours != theirs:
            raise DatasetError(
                f"{dataset.name}: its dataset.toml has {key}={_shown(theirs)} and the network "
                f"model.{key}={_shown(ours)}: make them equal"
            )


def _shown(value: object) -> str:
    """Write a value as TOML does; None, which TOML lacks, becomes `nothing`."""
    return "nothing" if value is None else str(list(value) if isinstance(value, tuple) else value)


def read_pair(dataset: Dataset, pair: Pair) -> tuple[Picture, NDArray[np.uint8]]:
    """Read a photo, upright, and its class ids (H, W) uint8 as `read_mask` gives them.

    Raises DatasetError where they are not of one size or the mask holds colours, and
    OSError for a file that cannot be read.
    """
    image = open_picture(pair.image, dataset.samples)
    return image, _mask_for(dataset, pair, image.size)


def read_source(dataset: Dataset, pair: Pair) -> tuple[PhotoFile, NDArray[np.uint8]]:
    """Open a photo for a network that decodes it as the service does, and read its class ids.

    The class ids and errors are those of `read_pair`. Of a JPEG only the header is read here, so
    that damaged pixels raise OSError when the network decodes them.
    """
    source = PhotoFile(pair.image, dataset.samples)
    return source, _mask_for(dataset, pair, source.size)


def _mask_for(dataset: Dataset, pair: Pair, size: Size) -> NDArray[np.uint8]:
    """Read the class ids of a photo of `size` (W, H); raises DatasetError for another size."""
    mask = read_mask(pair.mask, classes=len(dataset.classes), void=dataset.void)
    if mask.shape != size[::-1]:
        raise DatasetError(
            f"{pair.image} is {size[0]} x {size[1]} pixels, its mask {pair.mask} "
            f"is {mask.shape[1]} x {mask.shape[0]}: make them equal, or leave the pair out"
        )
    return mask


def read_values(mask: Mask) -> tuple[str, NDArray[np.uint8]]:
    """Read Pillow's mode and the values as they are in the file, (H, W) uint8."""
    path = mask.path if isinstance(mask, CodedMask) else mask
    with opened(path) as picture:
        kind, mode = picture.format, picture.mode
        if not why_no_ids(kind, mode):
            return mode, np.asarray(picture).astype(np.uint8, copy=False)
    # Not within `opened`, for which a ValueError is Pillow's.
    raise DatasetError(f"{path} {why_no_ids(kind, mode)}")


def why_no_ids(kind: str | None, mode: str) -> str:
    """Say why a mask of this format and mode (Pillow's) holds no class ids; "" if it does."""
    if kind in LOSSY:
        return f"is {LOSSY_MASK.format(kind)}"
    if mode in MASK_MODES:
        return ""
    return (
        f"has mode {mode}: masks hold class ids (mode P or L), not colours; "
        "`python -m model.data check DIR --convert OUT` translates known colours"
    )


def write_mask(path: Path, ids: NDArray[np.uint8], colors: Sequence[Color]) -> None:
    """Write class ids (H, W) uint8 as a palette PNG, complete or not at all.

    `colors` are those of the ids from 0 on; the rest get VOC's colour of void. All
    256 are attached: with fewer, Pillow renumbers the classes (its issue 6210).
    """
    table = np.full((256, 3), (224, 224, 192), np.uint8)
    table[: len(colors)] = colors
    picture = Image.fromarray(ids)
    picture.putpalette(table.tobytes())
    with files.replacing(path, durable=False) as partial:  # thousands of masks, made again easily
        picture.save(partial, "PNG")
