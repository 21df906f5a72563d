"""Training learns, resumes bit for bit, and stops with a reason."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import checkpoint
from model.data.augment import AugmentConfig
from model.data.dataset import find
from model.data.loader import Batch
from model.network.config import ModelConfig
from model.train import __main__ as train
from model.train import assembly, preflight, training
from model.train.distributed import World
from model.train.recipe import Recipe, RecipeError
from model.train.run import LOG, STATE, Pace, RunFolder, TrainingError
from model.train.step import train_step
from tests.model import voc_folder

TINY = ModelConfig(
    backbone="mobilenet_v2",
    depth_multiplier=0.25,
    aspp_channels=16,
    atrous_rates=(6,),
    aspp_separable=True,
    decoder_separable=True,
    decoder_channels=16,
    low_level_channels=8,
    crop_size=(65, 65),
)


def make_recipe(**changes: object) -> Recipe:
    fields: dict[str, object] = {
        "model": TINY,
        "split": "train",
        "augment": AugmentConfig(crop=33),
        "iterations": 6,
        "batch_size": 4,
        "learning_rate": 0.02,
        "ema_decay": 0.9,
        "batch_norm_momentum": 0.1,
    }
    return Recipe.model_validate(fields | changes)


def pace(config: Recipe, log_every: int = 1) -> Pace:
    return Pace(
        config.iterations,
        config.batch_size,
        save_every=2,
        log_every=log_every,
        max_skips=config.max_skips,
    )


def run(
    config: Recipe,
    data: Path,
    directory: Path,
    *,
    resume: bool = False,
    workers: int = 0,
    log_every: int = 1,
) -> Path:
    directory.mkdir(exist_ok=True)
    return training.train(
        config,
        find("voc", data, "train"),
        RunFolder(directory, World()),
        pace(config, log_every),
        resume=resume,
        workers=workers,
        validated_on=find("voc", data, "train") if config.validation_split else None,
    )


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Layers this small gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_folder.make(tmp_path_factory.mktemp("data"))


def test_masks_that_leave_nothing_to_learn_are_refused_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training on masks of 0 and 255 without `values` would end at loss 0."""
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "images/train/a.jpg")
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "masks/train/a.png")
    (tmp_path / "dataset.toml").write_text('classes = ["background", "thing"]\n')
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'dataset = "folder"\nsplit = "train"\niterations = 1\nbatch_size = 8\n'
        '[augment]\ncrop = 33\n[model]\nbackbone = "mobilenet_v2"\nnum_classes = 2\n'
    )
    command = [str(recipe), "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert train.main([*command]) == 2
    assert "every labelled pixel is background: nothing to tell apart" in capsys.readouterr().err
    assert train.main([*command, "--set", "model.num_classes=1"]) == 2
    assert "add a background class and set 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_cosine_schedule_is_pytorchs() -> None:
    """torch.optim.lr_scheduler.CosineAnnealingLR down to 0."""
    config = make_recipe(iterations=40, schedule="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for iteration in range(40):
        assert training.rate_factor(iteration, config) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_the_poly_policy_falls_from_one_to_zero() -> None:
    config = make_recipe(iterations=100)
    assert training.rate_factor(0, config) == 1
    assert training.rate_factor(50, config) == pytest.approx(0.5**0.9)
    assert training.rate_factor(99, config) == pytest.approx(0.01**0.9)
    warm = make_recipe(iterations=100, warmup=9)
    assert training.rate_factor(0, warm) == pytest.approx(0.1)
    assert training.rate_factor(9, warm) == pytest.approx(training.rate_factor(9, config))


@pytest.mark.slow
def test_only_full_convolutions_are_decayed() -> None:
    net = assembly.build(make_recipe())
    groups = assembly.parameter_groups(net, make_recipe(weight_decay=0.5, head_multiplier=10))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    seen = set()
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            full = parameter.ndim == 4 and parameter.shape[1] > 1
            assert group["weight_decay"] == (0.5 if full else 0.0), name
            assert group["rate"] == (0.02 if name.startswith("backbone.") else 0.2), name
    assert len(seen) == len(names)


@pytest.mark.slow
def test_frozen_parts_keep_weights_and_statistics(data: Path, tmp_path: Path) -> None:
    config = make_recipe(frozen=["backbone.blocks.0"], iterations=2, ema_decay=0.0)
    before = assembly.build(config).state_dict()
    after = checkpoint.load(run(config, data, tmp_path / "run")).state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert not any(key.startswith("backbone.blocks.0.") for key in changed)
    assert {"backbone.blocks.1.expand.conv.weight", "logits.weight"} <= changed


@pytest.mark.slow
def test_freezing_an_unknown_part_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"'backbone\.blok'; it has .*backbone\.blocks"):
        assembly.freeze(assembly.build(make_recipe()), ["backbone.blok"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"augment": AugmentConfig(crop=64)}, "take 49 or 65"),
        ({"batch_size": 1}, "batch_size=2 or more"),
    ],
)
def test_recipes_that_cannot_work_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        preflight.check(make_recipe(**changes))


@pytest.mark.slow
def test_a_batch_of_one_trains_with_frozen_batch_norm(data: Path, tmp_path: Path) -> None:
    config = make_recipe(batch_size=1, freeze_batch_norm=True, iterations=1)
    preflight.check(config)
    run(config, data, tmp_path / "run")


@pytest.mark.slow
def test_a_batch_of_one_trains_with_a_frozen_image_pooling(data: Path, tmp_path: Path) -> None:
    config = make_recipe(batch_size=1, frozen=["aspp.pooling"], iterations=1)
    preflight.check(config)
    run(config, data, tmp_path / "run")


@pytest.mark.slow
def test_a_batch_too_small_for_batch_norm_causes_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    preflight.check(make_recipe(batch_size=4))
    assert "freeze_batch_norm" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_weights": [0.5] + [1.0] * 20, "hard_mining": 0.5},
        {"lovasz": 1.0, "dice": 0.5, "focal": 2.0},
    ],
)
def test_a_batch_in_micro_batches_trains_like_the_whole(
    data: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With frozen batch norm, in float64: equal losses and weights to 9 digits."""
    build = assembly.build
    monkeypatch.setattr(assembly, "build", lambda config: build(config).double())
    model = TINY.model_copy(update={"aspp_dropout": 0.0})
    base = make_recipe(model=model, freeze_batch_norm=True, iterations=2, **options)
    results = []
    for parts in (1, 2, 4):
        config = base.model_copy(update={"accumulate": parts})
        begun = assembly.start(config, World())
        crops, loss = training.samples(config, find("voc", data, "train"), World())
        losses = []
        for iteration in range(config.iterations):
            samples = [crops[4 * iteration + at] for at in range(4)]
            batch = Batch.of(samples)
            weight = training.weight(loss, batch.labels)
            losses.append(
                train_step(
                    begun, batch, weight, factor=1.0, loss=loss, config=config, world=World()
                )
            )
        weights = torch.cat([p.detach().flatten() for p in begun.net.parameters()])
        results.append((losses, weights))
    (whole, expected), *others = results
    start = torch.cat([p.detach().flatten() for p in assembly.build(base).parameters()])
    assert (expected - start).norm() > 0.01
    for losses, weights in others:
        assert losses == pytest.approx(whole, rel=1e-9)
        assert (weights - expected).norm() < 1e-9 * (expected - start).norm()


@pytest.mark.slow
def test_a_small_set_is_learned(data: Path, tmp_path: Path) -> None:
    config = make_recipe(iterations=60, learning_rate=0.05, ema_decay=0.0)
    run(config, data, tmp_path / "run")
    lines = (tmp_path / "run" / LOG).read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    first, last = (sum(part) / 20 for part in (losses[:20], losses[-20:]))
    assert last < 0.5 * first < 0.5 * math.log(21)


@pytest.mark.slow
@pytest.mark.parametrize(("log_every", "logged"), [(20, [5]), (2, [2, 4, 5]), (5, [5])])
def test_the_last_iteration_is_logged_once(
    data: Path, tmp_path: Path, log_every: int, logged: list[int]
) -> None:
    """A run shorter than --log-every also leaves a log, with the loss."""
    config = make_recipe(iterations=5)
    run(config, data, tmp_path / "run", log_every=log_every)
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    assert [line["iteration"] for line in lines] == logged
    assert all(line["loss"] > 0 for line in lines)


@pytest.mark.slow
def test_a_run_that_ends_early_logs_its_last_losses(data: Path, tmp_path: Path) -> None:
    config = make_recipe(
        iterations=19, learning_rate=1e-9, validation_split="train", validate_every=1, patience=1
    )
    run(config, data, tmp_path / "run", log_every=20)
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    validated = [line["iteration"] for line in lines if "miou" in line]
    assert [line["iteration"] for line in lines if "loss" in line] == [validated[-1]]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(data: Path, tmp_path: Path) -> None:
    config = make_recipe()
    whole = run(config, data, tmp_path / "whole")
    step, calls = train_step, 0

    def killed(*args: object, **options: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:  # after three iterations; the last save was after two
            raise KeyboardInterrupt
        return step(*args, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, data, tmp_path / "cut")
    resumed = run(config, data, tmp_path / "cut", resume=True)
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.slow
def test_a_state_of_an_earlier_version_can_be_resumed(data: Path, tmp_path: Path) -> None:
    """Earlier versions did not store the scaler, the skips and the validations."""
    whole = run(make_recipe(), data, tmp_path / "whole")
    run(make_recipe(iterations=6), data, tmp_path / "cut")
    state = torch.load(tmp_path / "cut" / STATE, weights_only=True)
    torch.save(
        {k: state[k] for k in ("net", "optimizer", "average", "iteration")}, tmp_path / STATE
    )
    resumed = run(make_recipe(), data, tmp_path, resume=True)
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.slow
def test_the_error_about_missing_init_weights_names_the_option() -> None:
    with pytest.raises(checkpoint.CheckpointError, match=r"runs/none/model.*--set init="):
        assembly.build(make_recipe(init="runs/none/model"))


# A run that signals itself during its first iteration, with a loader process or without.
SIGNALLED = """
import multiprocessing, signal, subprocess, sys, time
from pathlib import Path
import torch
from model.train import training
from model.train.run import TrainingError
from tests.model.train.test_main import make_recipe, run

data, folder, workers, threads = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
torch.set_num_threads(threads)
step = training.train_step

def signalled(*args, **options):
    for worker in multiprocessing.active_children():
        # Not by ourselves: a worker takes its parent's SIGTERM for an orderly end.
        subprocess.run(["kill", str(worker.pid)], check=True)
        time.sleep(0.5)  # the trainer is told at once when a worker dies
    signal.raise_signal(signal.SIGTERM)
    return step(*args, **options)

training.train_step = signalled
try:
    run(make_recipe(), data, folder, workers=workers)
except TrainingError as error:
    print(error)
"""


def signalled(data: Path, folder: Path, *, workers: int = 0) -> str:
    """Return how such a run ends. It has its own process, which the signal may end."""
    words = [str(data), str(folder), str(workers), str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, *words],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
def test_a_signal_saves_the_current_iteration(data: Path, tmp_path: Path) -> None:
    config = make_recipe()
    whole = run(config, data, tmp_path / "whole")
    assert "after iteration 1: run the same command with --resume" in signalled(
        data, tmp_path / "cut"
    )
    assert torch.load(tmp_path / "cut" / STATE, weights_only=True)["iteration"] == 1
    resumed = run(config, data, tmp_path / "cut", resume=True)
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.slow
def test_a_signal_to_the_whole_group_leaves_the_loaders_workers_alive(
    data: Path, tmp_path: Path
) -> None:
    assert f"with --resume {tmp_path / 'run'} in place of --out" in signalled(
        data, tmp_path / "run", workers=1
    )


@pytest.mark.slow
def test_a_run_ends_in_a_checkpoint_that_rebuilds_the_network(data: Path, tmp_path: Path) -> None:
    path = run(make_recipe(iterations=2), data, tmp_path / "run")
    net = checkpoint.load(path)
    assert net.config == TINY
    assert not net.training
    card = checkpoint.read_card(path)
    assert card.classes[15] == "person"
    assert card.training["iterations"] == 2


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(
    data: Path, tmp_path: Path
) -> None:
    config = make_recipe()
    run(config, data, tmp_path)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        run(make_recipe(learning_rate=1e30, iterations=9), data, tmp_path, resume=True)
    state = torch.load(tmp_path / STATE, weights_only=True)
    assert all(value.isfinite().all() for value in state["net"].values())


@pytest.mark.slow
def test_bf16_keeps_depthwise_gradients_in_fp32(data: Path, tmp_path: Path) -> None:
    path = run(make_recipe(iterations=2, precision="bf16"), data, tmp_path / "run")
    assert checkpoint.load(path)(torch.zeros(1, 3, 33, 33)).isfinite().all()


def test_mistakes_on_the_command_line_exit_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert train.main(["efficientnet-lite0-voc", *arguments]) == 2
    assert "trainaug.txt does not exist" in capsys.readouterr().err
    assert train.main(["efficientnet-lite0-voc", *arguments, "--set", "seed=x"]) == 2
    assert "seed='x'" in capsys.readouterr().err
    assert train.main(["efficientnet-lite0-voc", *arguments, "--set", "split.a=1"]) == 2
    assert "split is a value, not a table" in capsys.readouterr().err
    assert train.main(["--list"]) == 0
    assert "efficientnet-lite0-voc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--out", "run", "--resume", "run"], "leave out --out"),
        (["--out", "run", "--save-every", "0"], "'0' is not a whole number above 0"),
        (["--out", "run", "--log-every", "-5"], "'-5' is not a whole number above 0"),
        (["--out", "run", "--workers", "-1"], "'-1' is not a whole number"),
    ],
)
def test_wrong_options_are_usage_errors(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        train.main(["efficientnet-lite0-voc", "--data", "data", *options])
    assert error.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_a_misspelt_folder_is_not_resumed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["efficientnet-lite0-voc", "--data", str(data), "--set", "split=train"]
    assert train.main([*arguments, "--resume", str(tmp_path / "rum")]) == 2
    assert "rum: there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "rum").exists()
