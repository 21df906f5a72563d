"""A study runs from training to page on a few pixels, and continues after an interruption."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.evaluate import __main__ as evaluate
from model.paper.studies import plan, run
from model.paper.studies.__main__ import main
from model.train import __main__ as train
from tests.model import voc_folder

QUICK = (
    *("split=train", "iterations=1", "batch_size=2", "augment.crop=33"),
    *("model.crop_size=[65, 65]", "model.aspp_channels=8", "model.decoder_channels=8"),
)
SETS = [word for override in QUICK for word in ("--set", override)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    voc_folder.make(root, count=4)
    return voc_folder.make(root, count=2, split="val")


@pytest.mark.slow
def test_a_study_is_run_once_and_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both networks are trained and evaluated; the second call does nothing; the page has plots."""
    out = tmp_path / "runs"
    command = ["decoder", "--data", str(data), "--out", str(out), "--seeds", "5", *SETS]
    assert main(command) == 0
    figures = json.loads((out / "upsampling-5-os16.json").read_text())
    assert figures["training"]["seed"] == 5
    assert set(figures["trimap"]) == {"1", "2", "5", "10", "20", "40"}
    assert figures["network"] == "upsampling"
    decided = json.loads((out / "decoder-5-os16.json").read_text())
    assert decided["miou"] != figures["miou"]

    def refuse(_: list[str]) -> int:
        raise AssertionError("run again")

    with monkeypatch.context() as patch:
        patch.setattr(train, "main", refuse)
        patch.setattr(evaluate, "main", refuse)
        assert main(command) == 0
    assert main(["write", "--out", str(out), "--docs", str(tmp_path / "docs")]) == 0
    page = (tmp_path / "docs" / "studies.md").read_text()
    assert "*2 photos; 1 iterations of 2 crops of 33 pixels; 20" in page
    assert "| whole photo | " in page
    assert page.count("Not run yet") == 10
    for picture in re.findall(r"!\[.*\]\((.*)\)", page):
        assert (tmp_path / "docs" / picture).stat().st_size > 1000
    kept = json.loads((tmp_path / "docs" / "studies" / "figures.json").read_text())
    assert kept["decoder-5-os16"]["miou"] == decided["miou"]


def test_an_interrupted_training_is_resumed(tmp_path: Path) -> None:
    settings = run.StudySettings(tmp_path / "data", tmp_path)
    point = plan.Point(plan.UPSAMPLING, 3)
    assert "--out" in run.train_command(point, settings)
    (tmp_path / "upsampling-3").mkdir()
    (tmp_path / "upsampling-3" / run.STATE).touch()
    command = run.train_command(point, settings)
    assert command[command.index("--resume") + 1] == str(tmp_path / "upsampling-3")
    assert {"seed=3", "model.decoder=false"} <= set(command)


def test_the_evaluation_command_contains_all_that_distinguishes_a_point(tmp_path: Path) -> None:
    point = plan.Point(plan.BUNDLED, None, 8, multi_scale=True, flip=True, photos=7)
    command = run.judge_command(point, run.StudySettings(tmp_path, tmp_path))
    args = evaluate.parser().parse_args(command)
    assert args.checkpoint == plan.BUNDLED_CHECKPOINT
    assert (args.output_stride, args.scales, args.flip) == (8, plan.MULTI_SCALE, True)
    assert args.photos == 7


def test_a_failing_part_stops_the_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only trained networks are evaluated."""
    out = tmp_path / "runs"
    command = ["decoder", "--data", str(tmp_path), "--out", str(out), *SETS]
    assert main(command) == 1
    assert "training upsampling-0 failed" in capsys.readouterr().err
    assert not list(out.glob("*.json"))


def test_a_dry_run_counts_the_crops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["widths", "--out", str(tmp_path), "--seeds", "0,1", "--dry-run"]
    assert main([*command, "--set", "iterations=10"]) == 0
    assert "10 trainings, 1600 crops" in capsys.readouterr().out


@pytest.mark.slow
def test_the_bundled_network_is_compared_with_itself_without_its_decoder(
    data: Path, tmp_path: Path
) -> None:
    """On some of the photos; its backbone and ASPP are the same in both."""
    out = tmp_path / "runs"
    sets = ["split=train", "iterations=1", "batch_size=2", "augment.crop=33"]
    overrides = [word for change in sets for word in ("--set", change)]
    command = ["boundary", "--data", str(data), "--out", str(out), "--seeds", "0,1"]
    assert main([*command, "--photos", "1", *overrides]) == 0
    names = {"bundled", "bilinear-0", "bilinear-1"}
    assert {path.name for path in out.glob("*.json")} == {f"{n}-os16-1photos.json" for n in names}
    weights = [checkpoint.read_weights(out / f"bilinear-{seed}/model") for seed in (0, 1)]
    bundled = checkpoint.read_weights(plan.BUNDLED_CHECKPOINT)
    assert all(
        torch.equal(part[key], bundled[key])
        for part in weights
        for key in part
        if not key.startswith("logits.")
    )
    assert not torch.equal(weights[0]["logits.weight"], weights[1]["logits.weight"])
    assert main(["write", "--out", str(out), "--docs", str(tmp_path / "docs")]) == 0
    page = (tmp_path / "docs" / "studies.md").read_text()
    assert "](studies/boundary.svg)" in page
    assert "*1 photos; 1 iterations of 2 crops of 33 pixels; 20" in page


@pytest.mark.parametrize("given", ["", "-1", "1,1", "a"])
def test_seeds_are_different_numbers(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A repeated seed would count as two, with no spread."""
    with pytest.raises(SystemExit):
        main(["all", "--out", "runs", "--dry-run", f"--seeds={given}"])
    assert "--seeds" in capsys.readouterr().err


def test_missing_data_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["all", "--out", str(tmp_path)])
    assert "give --data" in capsys.readouterr().err
