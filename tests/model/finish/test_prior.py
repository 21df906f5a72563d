"""Fitting a network to other class shares changes its biases and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, voc_palette
from model.finish import prior
from tests.model import voc_folder
from tests.model.nets import shake, tiny


def write_shares(path: Path, **changes: object) -> Path:
    shares = dict.fromkeys(VOC_CLASSES[1:], 0.05) | changes
    path.write_text("".join(f"{name} = {share}\n" for name, share in shares.items()))
    return path


def test_class_shares_follow_the_sampling() -> None:
    counts = np.array([[9, 1, 0], [9, 0, 1], [9, 0, 1], [9, 0, 1], [9, 0, 1]])
    assert prior.seen(counts, "uniform") == pytest.approx([1, 0.2, 0.8])
    # Rarest class in 1 and in 4 photos: weights 1 and 1/2, of five photos 1 + 4 / 2.
    assert prior.seen(counts, "balanced") == pytest.approx([1, 1 / 3, 2 / 3])


def test_probabilities_become_those_of_the_other_shares() -> None:
    """Bayes' rule with the new shares in place of the old: the definition."""
    classes = ("background", "cat", "dog")
    trained, target = np.array([1.0, 0.4, 0.1]), {"cat": 0.1, "dog": 0.2}
    added = prior.shifts(classes, trained, target, margin=0.0)
    likelihood = np.array([0.2, 0.5, 0.3])
    before = likelihood * trained
    after = likelihood * np.array([1.0, 0.1, 0.2])
    shifted = np.exp(np.log(before) + added)
    assert shifted / shifted.sum() == pytest.approx(after / after.sum())


def test_the_margin_lowers_the_background_only() -> None:
    added = prior.shifts(("background", "cat"), np.array([1.0, 0.5]), {"cat": 0.5}, margin=0.6)
    assert added == pytest.approx([-0.6, 0.0])


def test_a_class_that_no_training_photo_shows_is_an_error() -> None:
    with pytest.raises(prior.SharesError, match=r"no training photo shows \['cat'\]"):
        prior.shifts(("background", "cat"), np.array([1.0, 0.0]), {"cat": 0.5}, margin=0.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cat": 0}, "'cat': 0"),
        ({"cat": 1.5}, "'cat': 1.5"),
        ({"cat": "true"}, "'cat': True"),
        ({"unicorn": 0.1}, "unknown ['unicorn']"),
    ],
)
def test_shares_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(prior.SharesError) as error:
        prior.read_shares(write_shares(tmp_path / "shares.toml", **changes), VOC_CLASSES)
    assert says in str(error.value)


@pytest.mark.slow
def test_the_biases_change_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = tiny(len(VOC_CLASSES))
    shake(net, 0)
    palette = voc_palette(len(VOC_CLASSES))
    card = Card(model=net.config, classes=VOC_CLASSES, palette=palette, metrics={"miou": 0.5})
    checkpoint.save(tmp_path / "net", net.state_dict(), card)
    voc_folder.make(tmp_path / "data")
    every = np.ones((4, len(VOC_CLASSES)), np.int64)
    monkeypatch.setattr(
        prior, "pixel_counts", lambda _: every
    )  # the set's own masks show few classes
    shares = write_shares(tmp_path / "shares.toml", cat=0.5)
    arguments = [str(tmp_path / "net"), "-o", str(tmp_path / "out"), "--split", "train"]
    arguments += ["--data", str(tmp_path / "data"), "--shares", str(shares), "--margin", "0.6"]
    assert prior.main(arguments) == 0, capsys.readouterr().err
    before, after = (checkpoint.load(tmp_path / name).state_dict() for name in ("net", "out"))
    for name, tensor in before.items():
        if name != prior.BIAS:
            assert torch.equal(after[name], tensor), name
    added = after[prior.BIAS] - before[prior.BIAS]
    expected = [-0.6, *(np.log(0.5 if name == "cat" else 0.05) for name in VOC_CLASSES[1:])]
    torch.testing.assert_close(
        added, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0
    )
    written = checkpoint.read_card(tmp_path / "out")
    assert written.training["prior"]["margin"] == 0.6
    assert written.metrics == {}  # the old ones belong to other biases
