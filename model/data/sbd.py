"""Convert SBD's masks for VOC (Hariharan et al. 2011) from .mat files to the split `trainaug`.

`trainaug` is what the paper trains on (section 4.1): VOC's train and all of SBD,
without VOC's val, 10582 photos in all. A photo with masks of both keeps VOC's, which are finer
and mark borders as void. SBD's photos are VOC's own and need not be unpacked.

torchvision's SBDataset reads single files of an unpacked SBD the same way; it
joins no lists and writes nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from model.data import archives, voc
from model.data.pairs import DatasetError, read_mask, read_names, write_mask

TRAINAUG = 10582  # photos, where nothing is missing
# SciPy's, for what is no .mat file, and NumPy's, for one without the fields.
MAT_ERRORS = (MatReadError, ValueError, KeyError, IndexError, TypeError, NotImplementedError)


def augment(root: Path, source: Path) -> int:
    """Write SegmentationClassAug and trainaug.txt below `root`; returns the number of photos.

    `source` is SBD's archive or the folder it was unpacked into.
    """
    base = root / voc.BASE
    lists, masks = base / voc.LISTS, base / voc.AUGMENTED_MASKS
    train, val = (read_names(lists / f"{split}.txt") for split in ("train", "val"))
    masks.mkdir(parents=True, exist_ok=True)
    colors = voc.palette(256)
    names, judged = set(train), set(val)
    for name in train:
        ids = read_mask(base / voc.MASKS / f"{name}.png", classes=len(voc.CLASSES))
        write_mask(masks / f"{name}.png", ids, colors)
    for name, content in _mat_files(source):
        if name in names or name in judged:
            continue
        names.add(name)
        if not (masks / f"{name}.png").exists():
            write_mask(masks / f"{name}.png", read_mat(content, name), colors)
    _expect_photos(root, names)
    # The list comes last: it says that the masks are complete.
    text = "".join(f"{name}\n" for name in sorted(names))
    (lists / "trainaug.txt").write_text(text, encoding="utf-8")
    return len(names)


def _mat_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Photo's name and content of every class mask (`.../cls/NAME.mat`)."""
    found = False
    for path, read in _files(source):
        if path.parent.name == "cls" and path.suffix == ".mat":
            found = True
            yield path.stem, read()
    if not found:
        raise DatasetError(f"{source} holds no cls/*.mat; give SBD's benchmark.tgz")


def _files(source: Path) -> Iterator[tuple[Path, Callable[[], bytes]]]:
    """The .mat files of a folder or an archive: name and a function that reads each."""
    if source.is_dir():
        yield from ((path, path.read_bytes) for path in sorted(source.rglob("*.mat")))
        return
    with archives.naming(source):
        for name, _, stream in archives.members(source):
            yield Path(name), stream.read


def read_mat(content: bytes, name: str) -> NDArray[np.uint8]:
    """Class ids (H, W) uint8 of one of SBD's files."""
    try:
        segmentation = loadmat(io.BytesIO(content))["GTcls"][0]["Segmentation"][0]
    except MAT_ERRORS as error:
        raise DatasetError(f"{name}.mat holds no GTcls.Segmentation: {error}") from error
    return np.asarray(segmentation, np.uint8)


def _expect_photos(root: Path, names: set[str]) -> None:
    missing = [n for n in names if not (root / voc.BASE / "JPEGImages" / f"{n}.jpg").is_file()]
    if missing:
        raise DatasetError(
            f"{len(missing)} photos of SBD are not in {root / voc.BASE / 'JPEGImages'}, "
            f"as {min(missing)}.jpg: unpack the whole VOC archive first"
        )
