"""Two processes train like one: the loss curve is the same, and they stop together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model import checkpoint
from model.data.dataset import find
from model.train import assembly, preflight, training
from model.train.distributed import DistributedError, World, join
from model.train.recipe import RecipeError
from model.train.run import LOG, STATE, RunFolder, read_state
from model.train.validation import judge
from tests.model import voc_folder
from tests.model.train.test_distillation import teacher
from tests.model.train.test_main import make_recipe, pace
from tests.model.train.two_processes import (
    CHANGES,
    FROZEN,
    TEACHER,
    UNEVEN,
    in_float64,
    run,
    taught,
)


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Two Gloo processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_folder.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `two_processes` under torchrun; return its output folder."""
    out = tmp_path_factory.mktemp("two")
    assert teacher(out, data, 1) == str(out / TEACHER)
    done = torchrun("-m", "tests.model.train.two_processes", data, out)
    assert done.returncode == 0, done.stderr
    return out


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(
    data: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "build", in_float64(assembly.build))
    config = make_recipe(**CHANGES)
    dataset = find("voc", data, "train")
    path = training.train(
        config,
        dataset,
        RunFolder(tmp_path, World()),
        pace(config),
        resume=False,
        workers=0,
        validated_on=dataset,
    )
    one, both = lines(tmp_path), lines(two / "whole")
    assert [line["iteration"] for line in both] == [line["iteration"] for line in one]
    assert sum("miou" in line for line in both) == 2
    for line, other in zip(one, both, strict=True):
        for key in line.keys() & {"loss", "miou", "learning_rate"}:
            assert other[key] == pytest.approx(line[key], rel=1e-4), (key, line["iteration"])
    ours, theirs = checkpoint.read_weights(path), checkpoint.read_weights(two / "whole" / "model")
    start = assembly.build(config).state_dict()
    moved = torch.cat([(ours[name] - start[name]).flatten() for name in ours])
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in ours])
    assert apart.norm() < 1e-3 * moved.norm()
    statistics = [name for name in ours if name.endswith(("running_mean", "running_var"))]
    assert len(statistics) > 50
    for name in statistics:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_of_two_parts_train_like_one_process_on_the_whole_batch(
    data: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With frozen batch norm, in float64, with every option of the loss: equal to 9 digits."""
    monkeypatch.setattr(assembly, "build", in_float64(assembly.build))
    changes = {**FROZEN, "accumulate": 1}
    path = run(data, tmp_path / "run", World(), changes=changes)
    ours, theirs = checkpoint.read_weights(path), checkpoint.read_weights(two / "frozen" / "model")
    start = assembly.build(make_recipe(**changes)).state_dict()
    moved = torch.cat([(ours[name] - start[name]).flatten() for name in ours])
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in ours])
    assert apart.norm() < 1e-9 * moved.norm()


@pytest.mark.slow
def test_two_processes_learn_the_same_from_hints_as_one(
    data: Path, two: Path, tmp_path: Path
) -> None:
    """The maps to the teacher's features are trained by both: their gradients are averaged too."""
    changes = {**taught(two), "accumulate": 1}
    ours = checkpoint.read_weights(run(data, tmp_path / "run", World(), changes=changes))
    theirs = checkpoint.read_weights(two / "taught" / "model")
    start = assembly.build(make_recipe(**changes)).state_dict()
    moved = torch.cat([(ours[name] - start[name]).flatten() for name in ours])
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in ours])
    assert apart.norm() < 1e-3 * moved.norm()
    states = [read_state(folder)["net"] for folder in (tmp_path / "run", two / "taught")]
    maps = [state["hints.maps.0.weight"] for state in states]
    torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_photos_that_do_not_divide_into_the_processes_are_all_judged_once(
    data: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five photos in two processes: the confusion matrix of one process, in both of them."""
    monkeypatch.setattr(assembly, "build", in_float64(assembly.build))
    dataset = find("voc", data, "train")
    five = replace(dataset, pairs=dataset.pairs[:UNEVEN])
    alone = judge(assembly.build(make_recipe()).eval(), five, World())
    for rank in (0, 1):
        assert np.array_equal(np.load(two / f"uneven{rank}.npy"), alone.counts)


@pytest.mark.slow
def test_pytorchs_own_synchronised_batch_norm_refuses_cpus(two: Path) -> None:
    """So processes on CPUs use a layer of ours, and its tests say nothing of the one on GPUs."""
    assert "GPU" in (two / "syncbn.txt").read_text()


# Enough iterations for somebody to kill a process in their midst.
LONG = """
split = "train"
iterations = 60
batch_size = 4
[augment]
crop = 33
[model]
backbone = "mobilenet_v2"
depth_multiplier = 0.25
aspp_channels = 16
aspp_dropout = 0.0
"""
SECONDS_TO_STOP = 20.0  # the machine may be busy; alone it takes one


def started(recipe: Path, data: Path, *options: str | Path) -> subprocess.Popen[str]:
    """A training in two processes, saved after each third iteration."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", "-m", "model.train", recipe, "--data", data]
    pacing = ["--workers", "0", "--log-every", "1", "--save-every", "3"]
    return subprocess.Popen(
        [*map(str, [*command, *options]), *pacing],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
    )


def process_of(launcher: int, rank: int) -> int:
    """The id of one of the processes that torchrun has started."""
    listed = subprocess.check_output(["pgrep", "-P", str(launcher)], text=True)
    for process in map(int, listed.split()):
        if f"RANK={rank}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            return process
    raise LookupError(f"torchrun has no process {rank}")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_with_advice_and_the_run_resumes(
    data: Path, tmp_path: Path, victim: int
) -> None:
    recipe, out = tmp_path / "long.toml", tmp_path / "run"
    recipe.write_text(LONG)
    launcher = started(recipe, data, "--out", out)
    while not (out / LOG).exists() or len(lines(out)) < 5:
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.1)
    os.kill(process_of(launcher.pid, victim), signal.SIGKILL)
    killed = time.monotonic()
    says = launcher.communicate(timeout=60)[1]
    assert time.monotonic() - killed < SECONDS_TO_STOP
    assert launcher.returncode == 1
    assert "another process of this run has ended, was killed or cannot be reached" in says
    assert f"is intact: continue with --resume {out}" in says
    saved = torch.load(out / STATE, weights_only=True)["iteration"]
    assert 3 <= saved < 60
    resumed = started(recipe, data, "--resume", out, "--set", f"iterations={saved + 3}")
    assert resumed.communicate(timeout=120)[1].count("Traceback") == 0
    assert resumed.returncode == 0
    assert [line["iteration"] for line in lines(out)] == list(range(1, saved + 4))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_the_run_goes_on_bit_for_bit(two: Path) -> None:
    reasons = [(two / "cut" / f"stopped{rank}.txt").read_text() for rank in (0, 1)]
    assert reasons[0] == reasons[1]
    assert "stopped by a signal after iteration 3" in reasons[0]
    for name in ("model", "best"):
        whole, cut = (two / run / f"{name}.safetensors" for run in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.slow
def test_a_process_that_cannot_load_ends_both_with_its_reason(two: Path) -> None:
    reasons = [(two / "failed" / f"failed{rank}.txt").read_text() for rank in (0, 1)]
    assert reasons[0] == reasons[1]
    assert "No such file" in reasons[0]
    assert not (two / "failed" / STATE).exists()


@pytest.mark.slow
def test_a_process_that_cannot_validate_its_share_ends_both_with_its_reason(two: Path) -> None:
    reasons = [(two / "unjudged" / f"failed{rank}.txt").read_text() for rank in (0, 1)]
    assert reasons[0] == reasons[1]
    assert "lost.jpg" in reasons[0]


@pytest.mark.slow
def test_batch_norm_in_slices_is_that_of_the_whole(two: Path) -> None:
    torch.manual_seed(0)
    x = (torch.randn(4, 3, 5, 5) * 3 + 100).requires_grad_()
    factor = torch.randn(4, 3, 5, 5)
    norm = nn.BatchNorm2d(3, momentum=0.1)
    y = norm(x)
    (y * factor).sum().backward()
    halves = [torch.load(two / f"norm{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert x.grad is not None
    assert torch.allclose(torch.cat([half["y"] for half in halves]), y, atol=1e-4)
    gradient = torch.cat([half["gradient"] for half in halves])
    assert torch.allclose(gradient, x.grad, atol=1e-4)
    for half in halves:
        for name, value in norm.state_dict().items():
            assert torch.allclose(half[f"0.{name}"], value, rtol=1e-5), name


@pytest.mark.slow
def test_the_command_line_runs_under_torchrun(data: Path, tmp_path: Path) -> None:
    recipe = Path(tmp_path, "tiny.toml")
    recipe.write_text(
        'split = "train"\niterations = 2\nbatch_size = 4\n[augment]\ncrop = 33\n'
        '[model]\nbackbone = "mobilenet_v2"\ndepth_multiplier = 0.25\naspp_channels = 16\n'
    )
    command: list[str | Path] = [
        "-m",
        "model.train",
        recipe,
        "--data",
        data,
        "--out",
        tmp_path / "run",
    ]
    done = torchrun(*command, "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(tmp_path / "run" / training.NAME).config.aspp_channels == 16
    refused = torchrun(*command, "--workers", "0")
    assert refused.returncode != 0
    assert refused.stderr.count("holds a run, the state after iteration 2 is intact") == 1


def test_a_batch_that_processes_cannot_divide_is_refused() -> None:
    with pytest.raises(RecipeError, match="take a multiple of 6"):
        preflight.check(make_recipe(batch_size=4, accumulate=2), World(size=3))


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DistributedError, match="--nproc-per-node 2 or fewer"), join():
        pass
