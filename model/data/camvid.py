"""CamVid in the version of SegNet's authors: 11 classes, 480 x 360 pixels."""

from __future__ import annotations

from pathlib import Path

from model.data.pairs import Dataset, DatasetError, Pair, home
from model.text import TextError, read_text

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
# SegNet's colours for the eleven classes.
PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
VOID_COLOR = (0, 0, 0)
PLACES = ("CamVid", "")  # below what --data names
MARK = "trainannot"


def find(root: Path, split: str) -> Dataset:
    """List a split by its text file beside the folders `train`, `trainannot` and so on."""
    base = home(root, PLACES, MARK)
    pairs = tuple(
        Pair(name, _picture(base / split / name), base / f"{split}annot" / f"{name}.png")
        for name in _names(base, split)
    )
    return Dataset("camvid", split, pairs, CLASSES, PALETTE, 11, void_colors=(VOID_COLOR,))


def _names(base: Path, split: str) -> list[str]:
    """Stems, from a list of names or of SegNet's lines "/SegNet/CamVid/train/NAME.png MASK"."""
    path = base / f"{split}.txt"
    if not path.is_file():
        splits = sorted(p.stem for p in base.glob("*.txt"))
        raise DatasetError(f"{path} does not exist; splits found beside it: {splits or 'none'}")
    try:
        lines = read_text(path).splitlines()
    except TextError as error:
        raise DatasetError(str(error)) from None
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def _picture(stem: Path) -> Path:
    """The photo's path: copies of CamVid hold PNG or JPEG."""
    jpeg = stem.with_suffix(".jpg")
    return jpeg if jpeg.exists() else stem.with_suffix(".png")
