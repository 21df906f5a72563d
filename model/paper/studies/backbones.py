"""Table 4: train the backbones on one set of photos by class, and compare their error rates.

Without a folder of photos by class (ImageNet, or any other) the photos of VOC whose mask
shows a single class are taken. Each backbone is trained by `model.pretrain`, once for
each seed; a run that is done is skipped, an interrupted one is resumed.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model import checkpoint
from model.data.dataset import VOC_CLASSES, DatasetError, find
from model.data.pairs import Dataset, read_mask
from model.paper.studies.run import STATE, StudyError
from model.paper.studies.statistics import difference, percent, points

log = logging.getLogger("model.studies")

PHOTOS = "photos"  # made from VOC
TABLE = "table4.md"
RATES = {"top1_error": "top-1 error (%)", "top5_error": "top-5 error (%)"}


class Entry(NamedTuple):
    """A backbone of the table, and the paper's error rates on ImageNet in percent."""

    label: str
    backbone: str
    overrides: tuple[str, ...] = ()
    paper: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        return "-".join([self.backbone, *(o.split("=")[1] for o in self.overrides)])


# Section 4.3 says how much worse Xception is without the extra batch norm and ReLU: 0.75, 0.29.
RELU, PLAIN = "after_depthwise=batch_norm+relu", "after_depthwise=nothing"
PAPER = (
    Entry("ResNet-101", "resnet_v1_101_beta", (), (22.40, 6.02)),
    Entry("Xception-65", "xception_65", (RELU,), (20.19, 5.17)),
    Entry("Xception-65 without batch norm and ReLU", "xception_65", (PLAIN,), (20.94, 5.46)),
)


class BackboneSettings(NamedTuple):
    """The backbones to train, their photos, and the folder of the results."""

    images: Path
    out: Path
    seeds: Sequence[int]
    entries: Sequence[Entry] = PAPER
    overrides: tuple[str, ...] = ()  # of every training
    workers: int = 0


def entries(backbones: Sequence[str]) -> tuple[Entry, ...]:
    """The rows for backbones by name; the paper's without names."""
    return tuple(Entry(name, name) for name in backbones) or PAPER


def photos_of_voc(data: Path, out: Path) -> Path:
    """A folder of links to the photos of VOC that show one class: train/CLASS/ and val/CLASS/.

    Classes without a photo in either split are left out. Raises DatasetError.
    """
    folder = out / PHOTOS
    if (folder / "val").is_dir():
        return folder
    splits = {split: list(of_one_class(find("voc", data, split))) for split in ("train", "val")}
    common = set.intersection(*({label for _, label in photos} for photos in splits.values()))
    partial = folder.with_name(f"{PHOTOS}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, photos in splits.items():
        for photo, label in photos:
            if label in common:
                link = partial / split / VOC_CLASSES[label] / photo.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(photo.resolve())
    if not common:
        raise DatasetError(f"{data}: no class has photos of its own in both train and val")
    return partial.rename(folder)


def of_one_class(dataset: Dataset) -> Iterator[tuple[Path, int]]:
    """Photos whose mask has one class besides the background, with that class."""
    for pair in dataset.pairs:
        present = np.unique(read_mask(pair.mask, classes=len(dataset.classes)))
        labels = [int(label) for label in present if 0 < label < len(dataset.classes)]
        if len(labels) == 1:
            yield pair.image, labels[0]


def run(settings: BackboneSettings) -> str:
    """Run the trainings that are not done yet, and return the table; raises StudyError."""
    for seed in settings.seeds:
        for entry in settings.entries:
            train(entry, seed, settings)
    text = table(settings)
    (settings.out / TABLE).write_text(text, encoding="utf-8")
    return text


def folder_of(entry: Entry, seed: int, settings: BackboneSettings) -> Path:
    """The folder of a backbone's run."""
    return settings.out / f"{entry.name}-{seed}"


def train(entry: Entry, seed: int, settings: BackboneSettings) -> None:
    """Train one backbone unless that is done; raises StudyError."""
    from model import pretrain  # noqa: PLC0415 - loads torchvision, which takes seconds

    folder = folder_of(entry, seed, settings)
    if checkpoint.paths(folder / pretrain.NAME)[1].exists():
        log.info("%s is done", folder.name)
        return
    place = "--resume" if (folder / STATE).exists() else "--out"
    changes = [f"seed={seed}", *entry.overrides, *settings.overrides]
    words = [entry.backbone, "--data", str(settings.images), place, str(folder)]
    words += [word for change in changes for word in ("--set", change)]
    words += ["--workers", str(settings.workers)]
    log.info("training: python -m model.pretrain %s", shlex.join(words))
    if pretrain.main(words) != 0:
        raise StudyError(f"training {folder.name} failed or was stopped; run this again")


def rates(entry: Entry, settings: BackboneSettings) -> dict[str, list[float]]:
    """The error rates of a backbone, one for each seed; raises DatasetError without `val`."""
    from model.pretrain import NAME  # noqa: PLC0415 - as above

    found: dict[str, list[float]] = {}
    for seed in settings.seeds:
        card = folder_of(entry, seed, settings) / f"{NAME}.json"
        metrics = json.loads(card.read_text(encoding="utf-8"))["metrics"]
        if not metrics:
            raise DatasetError(f"{settings.images / 'val'}: no photos, so there is no error rate")
        for key in RATES.keys() & metrics.keys():
            found.setdefault(key, []).append(metrics[key])
    return found


def table(settings: BackboneSettings) -> str:
    """Table 4 as Markdown: the paper's rates, those found here, and whether they differ."""
    found = {entry: rates(entry, settings) for entry in settings.entries}
    first = settings.entries[0]
    lines = []
    for column, (key, title) in enumerate(RATES.items()):
        if key not in found[first]:
            continue
        lines += [
            f"| {title} | paper | here | against {first.label} | |",
            "|---|---:|---:|---:|---|",
        ]
        for entry, measured in found.items():
            paper = "" if entry.paper is None else f"{entry.paper[column]:.2f}"
            # A lower error is better: the gain is what the error falls by.
            gain = difference(measured[key], found[first][key])
            against = ["", ""] if entry == first else [points(gain), gain.verdict]
            cells = [entry.label, paper, percent(measured[key]), *against]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
