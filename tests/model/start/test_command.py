"""One command from a tool's file to an exported model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data import shapes
from model.data.__main__ import main as data_main
from model.data.check import check
from model.data.dataset import find
from model.start.command import main
from model.start.proposal import BATCH, LEAST, VIEWS, grid, propose
from model.train import recipe
from tests.model.data.exchange import files


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """The shapes as COCO's JSON; their photos are in `photos` beside it."""
    root = tmp_path / "shapes"
    shapes.make(root)
    out = tmp_path / "instances.json"
    assert (
        data_main(
            ["export", "coco", str(root), "--classes", "disc,square,triangle", "-o", str(out)]
        )
        == 0
    )
    (root / "images" / "train").rename(tmp_path / "photos")
    return out


def a_second(classes: int, crop: int) -> float:
    """A machine that needs a second for an iteration."""
    return 1.0


@pytest.mark.parametrize(
    ("side", "step", "expected"),
    [(375, 16, 369), (360, 4, 357), (4000, 16, 513), (40, 16, 129), (513, 16, 513), (130, 4, 129)],
)
def test_crops_lie_on_the_networks_grid(side: int, step: int, expected: int) -> None:
    assert grid(side, step) == expected
    assert (grid(side, step) - 1) % step == 0


def test_the_time_bounds_the_iterations(tmp_path: Path) -> None:
    """24 photos need 150 iterations of 8; half a minute at a second each allows 25."""
    shapes.make(tmp_path)
    report = check(find("folder", tmp_path, "train"))
    assert propose(report, 60, a_second).iterations == max(LEAST, round(VIEWS * 24 / BATCH))
    assert propose(report, 0.5, a_second).iterations == 25


def test_a_time_too_short_for_learning_is_told_with_the_time_that_is_enough(
    tmp_path: Path,
) -> None:
    """At 17 seconds an iteration, 60 of them are 17 minutes, and 20 with all that is around."""
    shapes.make(tmp_path)
    report = check(find("folder", tmp_path, "train"))
    short = propose(report, 3, lambda *_: 17.0)
    assert short.iterations < LEAST
    assert "give --minutes 20 or more" in "\n".join(short.lines())
    assert "too few" not in "\n".join(propose(report, 20, lambda *_: 17.0).lines())


def test_the_recipe_follows_batch_norms_statistics_however_short_it_is(tmp_path: Path) -> None:
    """Without a momentum of its own a recipe gets one that fits its length."""
    shapes.make(tmp_path)
    report = check(find("folder", tmp_path, "train"))
    (tmp_path / "recipe.toml").write_text(propose(report, 60, lambda *_: 1.0).recipe())
    assert recipe.read(str(tmp_path / "recipe.toml"), []).batch_norm_momentum is None


def test_rare_classes_change_the_sampling(tmp_path: Path) -> None:
    shapes.make(tmp_path)
    for path in (tmp_path / "masks" / "train").iterdir():
        with Image.open(path) as picture:
            ids, colors = np.asarray(picture).copy(), picture.getpalette()
        rows, columns = np.nonzero(ids == 3)
        ids[rows[5:], columns[5:]] = 0
        changed = Image.fromarray(ids)
        changed.putpalette(colors or [])
        changed.save(path)
    found = propose(check(find("folder", tmp_path, "train")), 60, a_second)
    assert found.rare == ("triangle",)
    (tmp_path / "r.toml").write_text(found.recipe())
    assert recipe.read(str(tmp_path / "r.toml"), []).sampling == "balanced"


@pytest.mark.slow
def test_a_proposal_trains_nothing_and_prints_the_next_commands(
    labels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "mine"
    assert main([str(labels), "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert "holds labels of coco" in told
    assert "verdict: usable" in told
    assert "python -m model.train" in told
    assert "python -m export" in told
    assert not (out / "run").exists()
    made = recipe.read(str(out / "recipe.toml"), [])
    assert (made.dataset, made.split, made.model.num_classes) == ("folder", "train", 4)
    assert find("folder", out / "data", "val").pairs


def test_labels_that_cannot_be_used_stop_before_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes.make(tmp_path / "shapes")
    for path in (tmp_path / "shapes" / "masks" / "train").iterdir():
        path.write_bytes(b"broken")
    assert main([str(tmp_path / "shapes"), "-o", str(tmp_path / "mine"), "--go"]) == 2
    assert "pairs are broken" in capsys.readouterr().out
    assert not (tmp_path / "mine").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_go_ends_with_a_model_to_serve(
    labels: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A few iterations show that the steps fit together. The quality is not tested."""
    out = tmp_path / "mine"
    assert main([str(labels), "-o", str(out), "--go", "--minutes", "0.1"]) == 0
    assert (out / "models" / "mine.onnx").is_file()
    assert (out / "run" / "report.html").is_file()
    summary = json.loads((out / "start.json").read_text())
    assert summary["judged_on"] == "val"
    assert 0 <= summary["miou"] <= 1
    assert "to serve it: python -m service --models" in capfd.readouterr().out


@pytest.mark.parametrize("minutes", ["0", "-5", "nan", "inf", "soon"])
def test_minutes_that_no_training_can_take_are_usage_errors(
    minutes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["labels", "-o", "out", "--minutes", minutes])
    assert stopped.value.code == 2
    assert "--minutes" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_before_the_labels_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes.make(tmp_path / "set")
    (tmp_path / "file").write_text("mine")
    assert main([str(tmp_path / "set"), "-o", str(tmp_path / "file")]) == 2
    told = capsys.readouterr()
    assert "is a file; name a folder" in told.err
    assert not told.out
    assert (tmp_path / "file").read_text() == "mine"


def test_an_import_of_other_labels_is_not_used_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the second export of a team would be trained on the first one's labels."""
    data = tmp_path / "out" / "data"
    data.mkdir(parents=True)
    (data / "dataset.toml").write_text('classes = ["a", "b"]\n')
    (data / "import.json").write_text('{"labels": "first.json"}')
    labels = files.coco_file(tmp_path / "second.json")
    assert main([str(labels), "-o", str(tmp_path / "out"), "--images", str(tmp_path)]) == 2
    assert "was imported from first.json, not from" in capsys.readouterr().err
