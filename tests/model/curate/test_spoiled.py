"""Labels that are spoiled on purpose are known to the pixel, and found by an audit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model import checkpoint
from model.checkpoint import Card
from model.curate import spoiled
from model.curate.spoiled import KINDS, Spoiled, figures, is_hit, spoil, spoil_dataset
from model.curate.suspects import Suspect, suspects
from model.data.dataset import find, read_mask
from model.data.voc import CLASSES, palette
from tests.model import voc_folder
from tests.model.curate.test_suspects import sure
from tests.model.nets import tiny


def disc() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A disc of class 1 and a ring of void around it."""
    rows, columns = np.mgrid[:60, :80]
    away = np.hypot(rows - 30, columns - 40)
    labels = np.where(away < 16, 1, 0)
    labels[(away >= 16) & (away < 18)] = 255
    return labels.astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_what_it_says(kind: str) -> None:
    before = disc()
    made = spoil(before, kind, 4, np.random.default_rng(0))
    assert made is not None
    values = {int(value) for value in np.unique(made.after[made.changed])}
    inside = before == 1
    assert not made.changed[before == 255].any()
    if kind == "another class":
        assert np.array_equal(made.changed, inside)
        assert values < {2, 3}
    elif kind == "dropped":
        assert np.array_equal(made.changed, inside)
        assert values == {0}
    else:  # the corners of the box, and nothing else
        assert values == {1}
        assert made.changed[15:46, 25:56].sum() == made.changed.sum() > 0
        assert (before[made.changed] == 0).all()


def test_a_photo_of_background_alone_cannot_be_spoiled() -> None:
    assert spoil(np.zeros((60, 80), np.uint8), "dropped", 4, np.random.default_rng(0)) is None


def test_a_single_object_class_cannot_be_exchanged_but_dropped() -> None:
    rng = np.random.default_rng(0)
    assert spoil(disc(), "another class", 2, rng) is None
    assert spoil(disc(), "dropped", 2, rng) is not None


def test_a_network_that_knows_the_truth_points_at_the_spoiled_region() -> None:
    before = disc()
    made = spoil(before, "another class", 3, np.random.default_rng(0))
    assert made is not None
    truth = np.where(before == 255, 0, before)
    (found,) = suspects("a", made.after, sure(truth))
    assert is_hit(found, {"a": made})
    assert not is_hit(found, {"b": made})


def test_precision_counts_hits_among_the_first_regions() -> None:
    before = disc()
    after = np.where(before == 1, 2, before).astype(np.uint8)
    made = {"a": Spoiled("another class", before, after)}
    hit = Suspect(0.9, "a", 2, 1, (20, 10, 60, 50), 800, 0.8)
    elsewhere = Suspect(0.8, "a", 0, 1, (0, 0, 10, 10), 100, 0.8)
    other = Suspect(0.7, "b", 2, 1, (20, 10, 60, 50), 800, 0.8)
    assert figures([hit, elsewhere, other], made)["precision"] == 0.333
    assert figures([hit, elsewhere, other], made, top=1)["precision"] == 1.0
    assert figures([elsewhere, hit], made)["kinds"]["another class"] == {"spoiled": 1, "found": 1}


def test_a_share_of_the_masks_is_spoiled_and_the_rest_is_as_before(tmp_path: Path) -> None:
    dataset = find("voc", voc_folder.make(tmp_path / "data", count=8), "train")
    (tmp_path / "masks").mkdir()
    changed, made = spoil_dataset(dataset, 0.5, 0, tmp_path / "masks")
    assert len(made) == 4
    for old, new in zip(dataset.pairs, changed.pairs, strict=True):
        before, after = (read_mask(pair.mask, classes=21) for pair in (old, new))
        if new.name in made:
            assert np.array_equal(before, made[new.name].before)
            assert np.array_equal(after, made[new.name].after)
            assert not np.array_equal(before, after)
        else:
            assert new == old


@pytest.mark.slow
def test_the_command_prints_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With an untrained judge: its precision is not judged here."""
    net = tiny(21)
    checkpoint.save(
        tmp_path / "judge",
        net.state_dict(),
        Card(model=net.config, classes=CLASSES, palette=palette(21)),
    )
    data = voc_folder.make(tmp_path / "data", count=6)
    command = [str(tmp_path / "judge"), "--data", str(data), "--split", "train", "--share", "0.5"]
    assert spoiled.main([*command, "--photos", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["photos"] == 4
    assert result["spoiled_photos"] == 2
    assert 0 <= result["precision"] <= 1
