"""The paper's training sequences: the plan, and one small run of every stage."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, voc_palette
from model.paper.reproduce.__main__ import main
from model.paper.reproduce.plan import (
    IMAGENET,
    SEQUENCES,
    VOC,
    Evaluation,
    Sequence,
    Submission,
    Training,
)
from model.paper.reproduce.run import Settings, commands, is_done
from model.train import recipe
from tests.model import voc_folder
from tests.model.nets import tiny

NET = {"backbone": "mobilenet_v2", "depth_multiplier": 0.25, "crop_size": [65, 65]} | dict.fromkeys(
    ("aspp_channels", "decoder_channels", "low_level_channels"), 8
)
QUICK = [
    *("iterations=1", "batch_size=2", "augment.crop=33", "model.aspp_separable=false"),
    *("model.decoder_separable=false", "model.output_stride=16"),
    *(f"model.{key}={json.dumps(value)}" for key, value in NET.items()),
]
SETS = [word for override in QUICK for word in ("--set", override)]


def data(root: Path, *, splits: tuple[str, ...] = ("trainaug", "val", "trainval", "test")) -> Path:
    """VOC and COCO in their layouts, two photos in each split."""
    for split in splits:
        voc_folder.make(root, count=2, split=split)
    base = root / "VOCdevkit" / "VOC2012"
    shutil.copytree(base / "SegmentationClass", base / "SegmentationClassAug")
    coco = root / "coco"
    shutil.copytree(base / "JPEGImages", coco / "train2017")
    shutil.copytree(base / "SegmentationClass", coco / "masks_voc" / "train2017")
    names = base / "ImageSets" / "Segmentation" / "val.txt"
    shutil.copy(names, coco / "masks_voc" / "train.txt")
    return root


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network to start from."""
    net = tiny(21, **NET)
    card = Card(model=net.config, classes=VOC_CLASSES, palette=voc_palette(21))
    return checkpoint.save(tmp_path / "weights", net.state_dict(), card).with_suffix("")


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES.keys())
def test_each_stage_uses_only_networks_of_earlier_stages(sequence: Sequence) -> None:
    """All stages of a sequence also have the sequence's backbone."""
    done = {IMAGENET}
    for stage in sequence.stages:
        if isinstance(stage, Training):
            assert stage.begins_with in done
            assert recipe.read(stage.preset, []).model.backbone == sequence.backbone
            done.add(stage.name)
        else:
            assert stage.of in done - {IMAGENET}
    names = [stage.name for stage in sequence.stages]
    assert len(set(names)) == len(names)


def test_a_network_trained_on_val_is_never_evaluated_on_it() -> None:
    trained_on_val = {
        stage.name for stage in VOC.trainings if recipe.read(stage.preset, []).split == "trainval"
    }
    assert trained_on_val == {"trainval"}
    assert all(
        stage.of not in trained_on_val for stage in VOC.stages if isinstance(stage, Evaluation)
    )


@pytest.mark.slow
def test_the_whole_sequence_runs_once(
    tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each stage leaves its result, the report has both figures; a second call adds nothing."""
    out = tmp_path / "out"
    command = ["voc", "--data", str(data(tmp_path / "data")), "--out", str(out)]
    command += ["--weights", str(weights), "--processes", "1", "--workers", "0", *SETS]
    assert main(command) == 0
    assert checkpoint.read_card(out / "trainval" / "model").training["split"] == "trainval"
    report = (out / "report.md").read_text()
    for stage in VOC.stages:
        if isinstance(stage, Evaluation):
            figures = json.loads((out / f"{stage.name}.json").read_text())
            assert figures["output_stride"] == stage.output_stride
            assert tuple(figures["scales"]) == stage.scales
            assert figures["flip"] == stage.multi_scale
            assert f"| {stage.published:.2f} | {100 * figures['miou']:.2f} |" in report
    assert "iterations=1" in report
    with tarfile.open(out / "trainval-test" / "results.tgz") as archive:
        masks = [name for name in archive.getnames() if name.endswith(".png")]
        with archive.extractfile(masks[0]) as file:  # type: ignore[union-attr]
            assert Image.open(file).size == (48, 40)
    assert len(masks) == 2
    assert report in capfd.readouterr().out

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "report.md"}
    assert main(command) == 0
    assert {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "report.md"
    } == before
    assert main([*command, "--plan"]) == 0
    assert len(re.findall(r" done$", capfd.readouterr().out, re.MULTILINE)) == len(VOC.stages)


def finished(stage: Training, settings: Settings) -> Path:
    """A training's result, as if it had been run."""
    config = settings.recipe(stage)
    net = tiny(21, **NET)
    card = Card(
        model=config.model,
        classes=VOC_CLASSES,
        palette=voc_palette(21),
        training=config.model_dump(mode="json", exclude={"model"}),
    )
    return checkpoint.save(settings.result(stage.name), net.state_dict(), card)


def test_a_trial_never_passes_for_the_papers_experiment(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results of a run with few iterations are not taken for those of the full recipes."""
    out = tmp_path / "out"
    finished(VOC.trainings[0], Settings(VOC, tmp_path, out, weights, overrides=tuple(QUICK)))
    command = ["voc", "--data", str(data(tmp_path / "data")), "--out", str(out), "--plan"]
    command += ["--weights", str(weights)]
    assert main([*command, *SETS]) == 0
    assert re.search(r"^coco .* done$", capsys.readouterr().out, re.MULTILINE)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "coco: " in said
    assert "iterations=60000 (before: 1)" in said
    assert "or another --out" in said


def test_figures_of_a_network_that_was_trained_again_are_not_kept(
    tmp_path: Path, weights: Path
) -> None:
    """An evaluation counts only for the weights that it was made with."""
    settings = Settings(VOC, tmp_path, tmp_path / "out", weights, overrides=tuple(QUICK))
    evaluation = next(stage for stage in VOC.stages if isinstance(stage, Evaluation))
    path = finished(VOC.trainings[1], settings)
    settings.figures(evaluation).write_text("{}")
    assert not is_done(evaluation, settings)
    digest = checkpoint.read_card(path).weights_sha256
    (settings.out / f"{evaluation.name}.sha256").write_text(str(digest))
    assert is_done(evaluation, settings)
    net = tiny(21, **NET)
    net.logits.weight.data += 1
    checkpoint.save(path, net.state_dict(), checkpoint.read_card(path))
    assert not is_done(evaluation, settings)


@contextmanager
def endless(root: Path, out: Path, weights: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the command; return once its first training has logged an iteration."""
    command = ["voc", "--data", str(root), "--out", str(out), "--weights", str(weights)]
    command += ["--processes", "1", "--workers", "0", *SETS, "--set", "iterations=1000000"]
    with subprocess.Popen(
        [sys.executable, "-m", "model.reproduce", *command],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        log = out / "coco" / "log.jsonl"
        while not (log.exists() and log.stat().st_size) and process.poll() is None:
            time.sleep(0.1)
        yield process


@pytest.mark.slow
def test_a_stopped_training_is_saved_and_continued(tmp_path: Path, weights: Path) -> None:
    """SIGTERM to the command reaches the training process that it started."""
    out = tmp_path / "out"
    with endless(data(tmp_path / "data"), out, weights) as process:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "coco was stopped; give the same command again to continue" in said
    settings = Settings(VOC, tmp_path / "data", out, weights)
    (words,) = commands(VOC.trainings[0], settings)
    assert words[words.index("--resume") + 1] == str(out / "coco")


@pytest.mark.slow
def test_a_killed_command_leaves_no_training_behind(tmp_path: Path, weights: Path) -> None:
    """SIGKILL cannot be passed on, but the training saves its state and ends."""
    out = tmp_path / "out"
    with endless(data(tmp_path / "data"), out, weights) as process:
        process.kill()
        # The training holds the other end of the pipe too: it reads to the end once both ended.
        _, said = process.communicate(timeout=60)
    assert "stopped by a signal" in said
    assert (out / "coco" / "state.pt").exists()


def test_several_gpus_train_with_torchrun(tmp_path: Path) -> None:
    settings = Settings(VOC, tmp_path, tmp_path / "out", tmp_path / "weights", processes=8)
    (words,) = commands(VOC.trainings[1], settings)
    assert words[:5] == ["-m", "torch.distributed.run", "--nproc-per-node", "8", "-m"]
    assert words[5:7] == ["model.train", "xception65-voc-from-coco"]
    assert f"init={tmp_path}/out/coco/model" in words


def test_imagenet_is_trained_first_if_it_is_given(tmp_path: Path) -> None:
    settings = Settings(VOC, tmp_path, tmp_path / "out", tmp_path, imagenet=tmp_path / "imagenet")
    first, second = commands(VOC.trainings[0], settings)
    assert first[1:3] == ["model.pretrain", "xception_65"]
    assert f"init={tmp_path}/out/imagenet/backbone" in second


def test_missing_inputs_are_reported_before_anything_runs(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ImageNet weights or the data of the last training are missing."""
    folder = data(tmp_path / "data", splits=("trainaug", "val"))
    command = ["voc", "--data", str(folder), "--out", str(tmp_path / "out"), *SETS]
    assert main([*command, "--weights", str(tmp_path / "nowhere")]) == 1
    said = capsys.readouterr().err
    assert "nowhere.safetensors" in said
    assert "--imagenet DIR" in said
    assert main([*command, "--weights", str(weights)]) == 1
    assert "trainval" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_photos_for_the_server_the_rest_can_run(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan says so, and how long the rest will take."""
    folder = data(tmp_path / "data", splits=("trainaug", "val", "trainval"))
    command = ["voc", "--data", str(folder), "--out", str(tmp_path / "out"), *SETS]
    command += ["--weights", str(weights), "--processes", "1"]
    assert main([*command, "--estimate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    stages = dict(zip((stage.name for stage in VOC.stages), lines, strict=False))
    assert stages["trainval-test"].endswith("no photos")
    assert re.search(r"1 iterations of 2, train +about \d+\.\d h$", stages["coco"])
    assert re.match(r"about \d+ hours in all on 1 x ", lines[-1])
    assert isinstance(VOC.stages[-1], Submission)
