"""Compute the teachers' answers for whole photos once and keep them on disk.

A training then only reads a file instead of running its teachers. Files cannot be out of date:
a file's name depends on the photo's content, its folder's name on the teachers' weights and
options, so that another photo or another teacher needs another file.

Answers are kept every 8 pixels, which is the spacing of logits at output stride 8, as the
probabilities of the likeliest classes in half precision: some 45 kB per photo.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from model import checkpoint
from model.data.dataset import DatasetError
from model.data.loader import expect_damage
from model.data.photo import read_picture
from model.data.soft import Floats
from model.train.distillation import Teachers
from model.train.distributed import World
from model.train.recipe import Recipe

log = logging.getLogger("model.train")

VERSION = 1  # of what a file holds
SPACING = 8  # pixels between answers
KEPT = 5  # classes of each answer
SEEN = 0.01  # share of a photo from which on a class counts as seen in it
ABOUT = "teachers.json"


@dataclass(frozen=True)
class Targets:
    """The answers of one set of teachers, as soft labels of crops (model.data.soft)."""

    folder: Path
    classes: int
    side: int  # of a crop's logits
    spacing: int = SPACING

    def path(self, photo: Path) -> Path:
        """The path of the answers for a photo; raises OSError if the photo cannot be read."""
        return self.folder / f"{hashlib.sha256(photo.read_bytes()).hexdigest()[:32]}.npz"

    def read(self, photo: Path) -> Floats:
        """The stored probabilities of a photo, (K, h, w); raises DatasetError if there are none."""
        path = self.path(photo)
        try:
            # Opened here: NumPy leaves the file of a damaged archive open.
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                ids, shares = file["ids"].astype(np.int64), file["shares"].astype(np.float32)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DatasetError(
                f"{path}, the teachers' answers for {photo}, cannot be read: {error}; "
                "delete it and start again with --resume"
            ) from None
        answers = np.zeros((self.classes, *ids.shape[1:]), np.float32)
        np.put_along_axis(answers, ids, shares, 0)
        return np.asarray(answers / answers.sum(0))

    def write(self, photo: Path, answers: Floats) -> None:
        """Keep the likeliest classes of answers (K, h, w), complete or not at all."""
        ids = np.argsort(-answers, axis=0, kind="stable")[:KEPT].astype(np.uint8)
        shares = np.take_along_axis(answers, ids.astype(np.int64), 0).astype(np.float16)
        path = self.path(photo)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, ids=ids, shares=shares)
        partial.replace(path)

    def pixels(self, photos: Sequence[Path]) -> NDArray[np.int64]:
        """Pixels of each class that the teachers see in each photo, (photos, K).

        A class that covers less than a hundredth of a photo does not count as seen.
        """
        counts = np.zeros((len(photos), self.classes), np.int64)
        for row, photo in enumerate(photos):
            if self.path(photo).is_file():  # a damaged photo has none: the training skips it
                labels = self.read(photo).argmax(0)
                counts[row] = np.bincount(labels.ravel(), minlength=self.classes)
                counts[row][counts[row] < SEEN * labels.size] = 0
        return counts * SPACING**2


def of(config: Recipe, root: Path) -> Targets:
    """The folder below `root` for the answers of the recipe's teachers; raises CheckpointError."""
    about = json.dumps(_about(config), indent=2, sort_keys=True)
    folder = root / hashlib.sha256(about.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).write_text(f"{about}\n", encoding="utf-8")
    side = (config.augment.crop - 1) // config.model.logits_stride + 1
    return Targets(folder, config.model.num_classes, side)


def _about(config: Recipe) -> dict[str, object]:
    """Everything that the answers depend on, except for the photo."""
    return {
        "version": VERSION,
        "spacing": SPACING,
        "kept": KEPT,
        "temperature": config.temperature,
        "precision": config.precision,
        "teachers": [
            {
                "weights": checkpoint.digest(teacher.checkpoint),
                "model": checkpoint.read_card(teacher.checkpoint).model.model_dump(mode="json"),
                **teacher.model_dump(mode="json", exclude={"checkpoint"}),
            }
            for teacher in config.teachers
        ],
    }


def prepare(
    targets: Targets, teachers: Teachers, photos: Sequence[Path], config: Recipe, world: World
) -> None:
    """Compute the missing answers; each process takes its share of the photos.

    Damaged photos are left out; the training skips them too.
    """
    kind = torch.float16 if config.precision == "fp16" else torch.bfloat16
    mixed = torch.autocast(world.device.type, kind, enabled=config.precision != "fp32")

    def work() -> None:
        missing = [photo for photo in photos[world.rank :: world.size] if _is_missing(photo)]
        if missing:
            log.info("asking the teachers about %d photos, for %s", len(missing), targets.folder)
        for photo in tqdm(missing, unit="photo", disable=not sys.stderr.isatty()):
            try:
                pixels = read_picture(photo, config.model.samples)
            except OSError as error:
                expect_damage(error)
                continue
            with mixed:
                targets.write(photo, teachers.of_photo(pixels, SPACING))

    def _is_missing(photo: Path) -> bool:
        return not targets.path(photo).is_file()

    world.together(work)
