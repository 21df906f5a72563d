"""Cityscapes: the official table, and masks of label ids read as train ids."""

from __future__ import annotations

from model.data.cityscapes import CLASSES, LABEL_IDS, LABELS, PALETTE


def test_the_label_table_is_the_official_one() -> None:
    from torchvision.datasets import Cityscapes

    official = {row.id: row for row in Cityscapes.classes if row.id >= 0}
    assert [label.id for label in LABELS] == sorted(official)
    for label in LABELS:
        row = official[label.id]
        assert (label.name, label.color) == (row.name, row.color)
        assert label.train_id == row.train_id


def test_train_ids_lead_back_to_label_ids() -> None:
    by_train_id = {label.train_id: label for label in LABELS if label.train_id != 255}
    assert sorted(by_train_id) == list(range(19))
    for train_id in range(19):
        label = by_train_id[train_id]
        assert (CLASSES[train_id], PALETTE[train_id]) == (label.name, label.color)
        assert LABEL_IDS[train_id] == label.id
