"""Your own data: folders of images and masks, described by `dataset.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.data import voc
from model.data.pairs import (
    VOID,
    CodedMask,
    Coding,
    Dataset,
    DatasetError,
    Mask,
    Pair,
    expect_inside,
    read_names,
)
from model.pydantic_errors import mistakes
from model.text import TextError, read_text
from pixels.bands import MOST_CHANNELS, SampleRange, Samples, check_range

DESCRIPTION = "dataset.toml"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # as the service takes
Channel = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Channel, Channel, Channel]


class FolderConfig(BaseModel):
    """`dataset.toml` of your own data; `{split}` in a folder stands for the split's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[str, ...] = Field(min_length=1, max_length=VOID)
    palette: tuple[Color, ...] = ()  # VOC's colours where left out
    values: tuple[int, ...] = ()  # mask value of each class; 0, 1, 2, ... where left out
    # default: 255, unless that is a class; "rest": every value of no class
    void: Channel | Literal["rest"] | None = None
    void_colors: tuple[Color, ...] = ()  # colours of void, in masks that hold colours
    images: str = "images/{split}"
    masks: str = "masks/{split}"
    mask_suffix: str = ".png"  # what follows the image's stem, e.g. "_mask.png"
    # More than 3: images are TIFF files of so many bands, the service's inputs too.
    channels: Annotated[int, Field(ge=3, le=MOST_CHANNELS)] = 3
    sample_range: SampleRange | None = None  # the 16-bit values that become 0 and 255
    lists: str | None = None  # a text file of stems, e.g. "{split}.txt"; else every image

    @model_validator(mode="after")
    def _consistent(self) -> FolderConfig:
        if len(self.classes) == 1:
            raise ValueError(
                f"classes={list(self.classes)}: a single class cannot be learnt; add "
                f'a background class, as in classes = ["background", "{self.classes[0]}"]'
            )
        for key, entries in (("palette", self.palette), ("values", self.values)):
            if entries and len(entries) != len(self.classes):
                kind = "colours" if key == "palette" else "values"
                raise ValueError(f"{key} has {len(entries)} {kind} for {len(self.classes)} classes")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes={list(self.classes)}: give every class a name of its own")
        if len(set(self.values)) != len(self.values) or not {*self.values} <= {*range(256)}:
            raise ValueError(f"values={list(self.values)}: give different numbers from 0 to 255")
        if self.values and self.void in self.values:
            raise ValueError(f"void={self.void} is also the value of a class; change one of them")
        check_range(self.samples)
        for key in ("images", "masks", "lists", "mask_suffix"):
            expect_inside(getattr(self, key) or "", key)
        if not self.mask_suffix.endswith(".png"):
            raise ValueError(f"mask_suffix={self.mask_suffix!r}: masks are .png files (lossless)")
        return self

    def coding(self) -> Coding | None:
        """Return how masks are read if `values` or `void = "rest"` is given."""
        if not self.values and self.void != "rest":
            return None
        values = self.values or tuple(range(len(self.classes)))
        rest = frozenset(range(256)) if self.void == "rest" else frozenset({self.void_value})
        return Coding.of({value: index for index, value in enumerate(values)}, rest - {*values})

    @property
    def samples(self) -> Samples:
        """The channels and the sample range of the photos."""
        return Samples(self.channels, self.sample_range)

    @property
    def void_value(self) -> int:
        """The single value that means void."""
        return self.void if isinstance(self.void, int) else VOID


def find(root: Path, split: str) -> Dataset:
    """List the images of a split with their masks, as `dataset.toml` says."""
    config = read_description(root / DESCRIPTION)
    expect_inside(split, "split")
    images, masks = (
        root / name.replace("{split}", split) for name in (config.images, config.masks)
    )
    mixed = config.mask_suffix if images == masks else ""
    found = _images(images, root, but=mixed)
    names = (
        read_names(root / config.lists.replace("{split}", split)) if config.lists else list(found)
    )
    coding = config.coding()

    def mask(name: str) -> Mask:
        path = masks / f"{name}{config.mask_suffix}"
        return CodedMask(path, coding) if coding else path

    pairs = tuple(Pair(name, found.get(name, images / f"{name}.jpg"), mask(name)) for name in names)
    void = VOID if coding else config.void_value
    colors = config.palette or voc.palette(len(config.classes))
    void_colors = config.void_colors or (() if config.palette else (voc.VOID_COLOR,))
    return Dataset(
        "folder",
        split,
        pairs,
        config.classes,
        colors,
        void,
        void_colors,
        own_palette=bool(config.palette),
        samples=config.samples,
        notes=() if config.lists else tuple(_left_over(images, masks, pairs)),
    )


def _left_over(images: Path, masks: Path, pairs: tuple[Pair, ...]) -> Iterator[str]:
    """Describe files that belong to no pair, perhaps because of their spelling or format."""
    used = {pair.image for pair in pairs} | {Path(str(pair.mask)) for pair in pairs}
    for folder, what in ((images, "is no image by its suffix"), (masks, "has no image")):
        if not folder.is_dir() or (folder == images and images == masks):
            continue
        files = (path for path in folder.iterdir() if path.is_file())
        others = sorted(path.name for path in files if path not in used and path.name[0] != ".")
        if others:
            yield f"{len(others)} files in {folder} are not used: {others[0]} {what}"


def _images(folder: Path, root: Path, but: str = "") -> dict[str, Path]:
    """Images of a folder by stem; names that end with `but`, the masks in it, are left out."""
    if not folder.is_dir():
        beside = [p.name for p in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        loose = [p for p in folder.parent.glob("*.*") if p.suffix.lower() in SUFFIXES]
        if loose:
            raise DatasetError(
                f"{folder} does not exist; {len(loose)} pictures lie in {folder.parent} itself: "
                "move most of them into the folder train, the others into val, and the masks "
                f"likewise; or set `images`, `masks` and `lists` in {root / DESCRIPTION}"
            )
        raise DatasetError(
            f"{folder} does not exist (beside it: {', '.join(sorted(beside)) or 'nothing'}); "
            f"set `images` in {root / DESCRIPTION}, or name another split"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        # macOS leaves a hidden ._NAME.jpg beside each file that it copies.
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if but and path.name.endswith(but):
            continue
        if path.stem in found:
            raise DatasetError(f"{found[path.stem]} and {path} share a name; rename one of them")
        found[path.stem] = path
    if not found and but:
        raise DatasetError(
            f"{folder} holds photos and masks, and every name ends with mask_suffix={but!r}: set "
            f"mask_suffix in {root / DESCRIPTION} to what only the masks' names have, or give "
            "photos and masks a folder each"
        )
    if not found:
        raise DatasetError(
            f"{folder} holds no image ({', '.join(SUFFIXES)}); folders inside it are not searched"
        )
    return found


def read_description(path: Path) -> FolderConfig:
    """Read `dataset.toml`; raises DatasetError naming the key, the value and what to do."""
    if not path.is_file():
        raise DatasetError(f"{path} does not exist; write one that names your classes")
    try:
        return FolderConfig.model_validate(tomllib.loads(read_text(path)))
    except ValidationError as error:
        raise DatasetError(f"{path}: {mistakes(error, FolderConfig)}") from error
    except TextError as error:
        raise DatasetError(str(error)) from error  # it names the file
    except ValueError as error:  # not TOML
        raise DatasetError(f"{path}: {error}") from error
