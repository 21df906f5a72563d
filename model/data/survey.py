"""Check a set's masks before a training or an evaluation spends hours on them.

Masks of 0 and 255 without `values`, ids off by one or all void are read without an error:
what stands for no class is void. So a training would end at loss 0 and an evaluation at
mIoU 1. What is found here is what `python -m model.data check` reports.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from model.data.check import each, look_at_mask
from model.data.pairs import Dataset, DatasetError, Pair
from model.data.report import Report, repeated

log = logging.getLogger("model.data")

TRAINING_MASKS = 300  # evenly over the split: a second or two, whatever its size


def survey(dataset: Dataset, at_most: int | None = None) -> Report:
    """Read the masks of a split, not the photos.

    Of more than `at_most` masks as many are read, spread evenly, and all where those look
    odd. Masks that cannot be read are among the report's problems.
    """
    if at_most is None or at_most >= len(dataset.pairs):
        return _look(dataset, dataset.pairs)
    places = np.linspace(0, len(dataset.pairs) - 1, at_most).round().astype(int).tolist()
    report = _look(dataset, [dataset.pairs[place] for place in places])
    odd = report.strays() or report.absent() or report.nothing_to_tell()
    return _look(dataset, dataset.pairs) if odd else report


def _look(dataset: Dataset, pairs: Sequence[Pair]) -> Report:
    report = Report(dataset)
    for pair, look in zip(pairs, each(look_at_mask, pairs, "mask"), strict=True):
        report.add(pair, look)
    return report


def expect_classes(report: Report, *, skips_damage: bool = False) -> None:
    """Warn about classes without a pixel, and about photos that are listed more than once.

    Raises DatasetError for masks that cannot be read, if no pixel has a class, if all of them
    have the same one, and for ids that are no class: with ids that are off by one, every class
    is learned as another. With `skips_damage`, masks that cannot be read are left to the
    training, which skips some of them.
    """
    dataset = report.dataset
    where = f"{dataset.name} {dataset.split}"
    if report.problems and not skips_damage:
        others = f", and {len(report.problems) - 1} more" if len(report.problems) > 1 else ""
        raise DatasetError(f"{where}: {report.problems[0]}{others}; see python -m model.data check")
    if fatal := [*filter(None, [report.nothing_to_tell()]), *report.strays()]:
        raise DatasetError(f"{where}: {fatal[0]}; see python -m model.data check")
    for warning in [*repeated(dataset), *report.absent()]:
        log.warning("%s: %s", where, warning)
