"""`python -m model.audit --folds`: each network audits photos that it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import checkpoint
from model.curate import audit, folds, spoiled
from model.data.__main__ import main as data_command
from model.data.dataset import Dataset, DatasetError, find
from model.train.__main__ import main as train
from model.train.recipe import Recipe
from tests.model.recipes import TWO_CLASSES

pytestmark = pytest.mark.slow

WRONG = "p03"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos of a dark and a bright half; in one of them the labels are exchanged."""
    root = tmp_path_factory.mktemp("halves")
    (root / "dataset.toml").write_text('classes = ["dark", "bright"]\n')
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(24):
        ids = np.zeros((65, 65), np.uint8)
        ids[:, int(rng.integers(20, 45)) :] = 1
        name = f"p{number:02}"
        grey = np.where(ids, 200, 60)[..., None] + rng.integers(-20, 20, (65, 65, 3))
        Image.fromarray(grey.astype(np.uint8)).save(root / "images" / "train" / f"{name}.png")
        mask = 1 - ids if name == WRONG else ids
        Image.fromarray(mask).save(root / "masks" / "train" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(TWO_CLASSES)
    return path


@pytest.fixture(scope="module")
def run(data: Path, recipe: Path) -> str:
    """A checkpoint of a short training on all photos.

    At the recipe's own rate what the folds find depends on the processor's rounding.
    """
    out = recipe.parent / "run"
    words = [str(recipe), "--data", str(data), "--out", str(out), "--workers", "0"]
    assert train([*words, "--set", "iterations=2", "--set", "learning_rate=0.05"]) == 0
    return str(out / "model")


@pytest.fixture
def dataset(data: Path) -> Dataset:
    return find("folder", data, "train")


def test_each_photo_is_judged_once_by_a_network_that_has_not_seen_it(dataset: Dataset) -> None:
    divided = folds.divide(dataset, 5, seed=0)
    judged = [pair.name for fold in divided for pair in fold.judged.pairs]
    assert sorted(judged) == [pair.name for pair in dataset.pairs]
    for fold in divided:
        assert not {*fold.judged.pairs} & {*fold.trained.pairs}
        assert {*fold.judged.pairs} | {*fold.trained.pairs} == {*dataset.pairs}
        assert len(fold.judged.pairs) in (4, 5)


def test_photos_of_a_group_stay_in_one_fold(dataset: Dataset, tmp_path: Path) -> None:
    """Frames of one video hold the same mistakes; the record of an import names their group."""
    rows = "".join(f"{pair.name},train,{pair.name[-1] in '0123'},x\n" for pair in dataset.pairs)
    (tmp_path / "photos.csv").write_text(f"name,split,group,origin\n{rows}")
    first, second = folds.divide(dataset, 2, 0, tmp_path)
    for fold in (first, second):
        assert len({pair.name[-1] in "0123" for pair in fold.judged.pairs}) == 1
    with pytest.raises(DatasetError, match="has 2 groups of photos: take fewer folds"):
        folds.divide(dataset, 3, 0, tmp_path)


def test_the_cost_is_told_and_nothing_is_trained_without_go(
    run: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["audit", run, "--data", str(data), "--split", "train", "-o", str(tmp_path / "out")]
    assert data_command([*words, "--folds", "3", "--iterations", "40"]) == 0
    told = capfd.readouterr().err
    assert "3 trainings of 40 iterations of 4 crops" in told
    assert "then 24 photos" in told
    assert "add --go to start" in told
    assert not (tmp_path / "out").exists()


def test_exchanged_labels_come_first_and_a_stopped_audit_goes_on(
    run: str, data: Path, tmp_path: Path
) -> None:
    """The second call finds every fold trained, and audits again."""
    out = tmp_path / "out"
    words = [run, "--data", str(data), "--split", "train", "-o", str(out), "--go"]
    assert audit.main([*words, "--folds", "2", "--iterations", "80"]) == 0
    assert (out / "photos.txt").read_text().split()[0] == WRONG
    weights = [checkpoint.digest(out / f"fold{number}" / "model") for number in (1, 2)]
    page = (out / "audit.html").read_text()
    assert audit.main([*words, "--folds", "2", "--iterations", "80"]) == 0
    assert [checkpoint.digest(out / f"fold{number}" / "model") for number in (1, 2)] == weights
    assert (out / "audit.html").read_text() == page


def test_the_study_of_the_audit_trains_on_spoiled_labels(
    run: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The label that was wrong before is among the first too, and counts as a miss.

    How many of the spoiled labels so small a network finds depends on the processor's rounding.
    """
    out = tmp_path / "out"
    trained_on: list[object] = []
    trained = folds.trained

    def watched(config: Recipe, fold: folds.Fold, folder: Path, workers: int) -> Path:
        trained_on.extend(pair.mask for pair in fold.trained.pairs)
        return trained(config, fold, folder, workers)

    monkeypatch.setattr(folds, "trained", watched)
    words = [run, "--data", str(data), "--split", "train", "--share", "0.125", "--top", "5"]
    words += ["--folds", "2", "--iterations", "80", "--json", "-o", str(out)]
    assert spoiled.main(words) == 0
    assert "add --go to start" in capsys.readouterr().err
    assert spoiled.main([*words, "--go"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["folds"] == 2
    dropped = result["kinds"]["dropped"]
    assert dropped["spoiled"] == 3
    assert 1 <= dropped["found"] <= 3
    assert 0.2 <= result["precision"] < 1
    masks = sorted((out / "masks").iterdir())
    assert len(masks) == 3
    assert {*masks} <= {*trained_on}
    assert len(trained_on) == 24
    assert (out / "fold2" / "model.json").is_file()


def test_the_study_asks_for_a_folder(run: str, data: Path) -> None:
    with pytest.raises(SystemExit):
        spoiled.main([run, "--data", str(data), "--folds", "2"])


def test_a_checkpoint_without_a_recipe_is_refused(
    data: Path, tmp_path: Path, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    card = checkpoint.read_card(run).model_copy(update={"training": {}})
    checkpoint.save(tmp_path / "foreign", checkpoint.read_weights(run), card)
    words = [str(tmp_path / "foreign"), "--data", str(data), "-o", str(tmp_path / "out")]
    assert audit.main([*words, "--folds", "2"]) == 2
    assert "its description has none" in capsys.readouterr().err
