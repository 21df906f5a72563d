"""Pack results for the test servers of PASCAL VOC and Cityscapes.

VOC (http://host.robots.ox.ac.uk:8080, "comp6": any training data) takes palette
PNGs of class ids in a folder with a fixed name, packed as .tgz. Cityscapes
(https://www.cityscapes-dataset.com/submit) takes one PNG of label ids per photo,
named by city, sequence and frame, packed as .zip. Both need the photo's size.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.data import cityscapes
from model.data.dataset import VOC_CLASSES, voc_palette

VOC = "voc"
CITYSCAPES = "cityscapes"
CLASSES = {VOC: VOC_CLASSES, CITYSCAPES: cityscapes.CLASSES}
PHOTO_ENDING = "_leftImg8bit"  # of Cityscapes


class SubmissionError(ValueError):
    """A network or a photo does not fit the server; the message says why."""


def check(server: str, classes: Sequence[str]) -> None:
    """Raise SubmissionError unless a network's classes are the server's, in its order."""
    wanted = CLASSES[server]
    if tuple(classes) != wanted:
        odd = next(
            (pair for pair in zip(classes, wanted, strict=False) if pair[0] != pair[1]), None
        )
        difference = f"{odd[0]!r} where the server has {odd[1]!r}" if odd else "another number"
        raise SubmissionError(
            f"--submission {server} needs the {len(wanted)} classes of the server in their order; "
            f"the network has {len(classes)}: {difference}"
        )


def place(server: str, photo: Path, split: str) -> Path:
    """The path of a photo's result in the submission.

    Raises SubmissionError for a photo that Cityscapes could not assign.
    """
    if server == VOC:
        return Path(f"results/VOC2012/Segmentation/comp6_{split}_cls") / f"{photo.stem}.png"
    name = photo.stem.removesuffix(PHOTO_ENDING)
    words = name.split("_")
    if len(words) != 3 or not (words[1] + words[2]).isdecimal():
        raise SubmissionError(
            f"{photo}: Cityscapes knows photos by CITY_SEQUENCE_FRAME, as in "
            f"berlin_000000_000019{PHOTO_ENDING}.png"
        )
    return Path("results") / f"{name}_labelIds.png"


def picture(server: str, labels: NDArray[np.uint8]) -> Image.Image:
    """Convert class ids (H, W) uint8 to the server's picture of the same size."""
    if server == VOC:
        image = Image.fromarray(labels)
        image.putpalette(np.array(voc_palette(256), np.uint8).tobytes())
        return image
    return Image.fromarray(np.array(cityscapes.LABEL_IDS, np.uint8)[labels])


def archive(server: str, out: Path) -> Path:
    """The path of the archive that `pack` writes."""
    return out / ("results.tgz" if server == VOC else "results.zip")


def pack(server: str, out: Path, places: Sequence[Path]) -> Path:
    """Pack the results at `places` below `out` for upload; returns the archive's path."""
    target = archive(server, out)
    if server == VOC:
        with tarfile.open(target, "w:gz") as tar:
            for name in sorted(places):
                tar.add(out / name, name)
    else:
        with zipfile.ZipFile(target, "w") as packed:  # PNGs are compressed already
            for name in sorted(places):
                packed.write(out / name, name.name)
    return target
