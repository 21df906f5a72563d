"""Check photos in one folder per class (like ImageNet) before pretraining.

Pretraining reads them with torchvision's ImageFolder, which numbers the classes by
the alphabetical order of their folders. Every split must have the same folders, or
the numbers mean different classes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.data.check import each
from model.data.pairs import DatasetError
from model.data.photo import opened
from model.data.report import SHOWN

# From torchvision.datasets.folder.IMG_EXTENSIONS; it ignores all other files silently.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MIN_SIDE = 32  # pixels: the deepest features of such a photo are a single position


@dataclass
class FolderReport:
    """The result of checking one split."""

    root: Path
    split: str
    images: dict[str, int] = field(default_factory=dict)  # by class
    modes: Counter[str] = field(default_factory=Counter)
    tiny: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether a pretraining can read every photo and every class has some."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "dataset": "imagefolder",
            "split": self.split,
            "images": sum(self.images.values()),
            "classes": self.images,
            "modes": dict(self.modes),
            "tiny": self.tiny,
            "ignored": self.ignored,
            "problems": self.problems,
            "verdict": f"{len(self.problems)} problems" if self.problems else "usable",
        }

    def to_text(self) -> str:
        """Return the report for reading."""
        report = self.to_json()
        counts = self.images.values()
        lines = [
            f"imagefolder {self.split}: {report['images']} images, {report['modes']}",
            f"  {len(counts)} classes of {min(counts)} to {max(counts)} images",
        ]
        lines += [f"broken: {problem}" for problem in self.problems[:SHOWN]]
        hidden = len(self.problems) - SHOWN
        lines += [f"... and {hidden} more; --json lists them all"] if hidden > 0 else []
        for names, what in (
            (self.tiny, f"images have a side below {MIN_SIDE} pixels"),
            (self.ignored, "files are no images by their suffix and are passed over"),
        ):
            lines += [f"warning: {len(names)} {what}, as {names[0]}"] if names else []
        return "\n".join([*lines, f"verdict: {report['verdict']}"])


def check_images(root: Path, split: str) -> FolderReport:
    """Read every photo below `root/split/CLASS` and report problems.

    Raises DatasetError if the folder does not exist or contains no class.
    """
    classes = class_folders(root / split)
    report = FolderReport(root, split)
    for name in classes:
        files = sorted(p for p in (root / split / name).rglob("*") if p.is_file())
        photos = [p for p in files if p.suffix.lower() in SUFFIXES]
        report.images[name] = len(photos)
        report.ignored += [str(p) for p in files if p.suffix.lower() not in SUFFIXES]
        if not photos:
            report.problems.append(f"{root / split / name} holds no image")
    _compare_splits(report, set(classes))
    _read_all(report)
    return report


def class_folders(folder: Path) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} does not exist; it should hold a folder for each class")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if not classes:
        raise DatasetError(f"{folder} holds no folders; it should hold one for each class")
    return classes


def _compare_splits(report: FolderReport, classes: set[str]) -> None:
    """Report splits whose folders differ: they would number their classes differently."""
    for other in sorted({"train", "val"} - {report.split}):
        if report.split in ("train", "val") and (report.root / other).is_dir():
            differ = classes ^ set(class_folders(report.root / other))
            if differ:
                report.problems.append(
                    f"{report.split} and {other} have different classes: {sorted(differ)[:SHOWN]}"
                )


def _read_all(report: FolderReport) -> None:
    photos = [
        path
        for name in report.images
        for path in sorted((report.root / report.split / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    for path, result in zip(photos, each(_read, photos, "image"), strict=True):
        if isinstance(result, str):
            report.problems.append(result)
            continue
        mode, side = result
        report.modes[mode] += 1
        if side < MIN_SIDE:
            report.tiny.append(str(path))


def _read(path: Path) -> tuple[str, int] | str:
    """The mode and shorter side of a photo, or the problem with it."""
    try:
        with opened(path) as picture:
            mode, side = picture.mode, min(picture.size)
            # JPEG at an eighth of its size: all of the file is read, little is computed.
            picture.draft(None, (1, 1))
            picture.load()
    except OSError as error:
        return str(error)
    return mode, side
