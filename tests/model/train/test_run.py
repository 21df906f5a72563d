"""Nothing is lost: full disks, damaged photos, kill -9, and logs cut off in the middle."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from model import checkpoint, files
from model.checkpoint import Card
from model.data import loader
from model.data.augment import AugmentConfig
from model.data.dataset import VOC_CLASSES, DatasetError, find, voc_palette
from model.data.loader import ATTEMPTS, CropDataset, Order
from model.train import assembly, preflight, step, training, validation
from model.train.distributed import World
from model.train.run import (
    LOG,
    STATE,
    RunFolder,
    StopSignals,
    TrainingError,
    kept,
    memory_advice,
    reason,
    restore,
    rewind,
)
from tests.model import limits, voc_folder
from tests.model.train.test_main import TINY, make_recipe, run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return voc_folder.make(tmp_path / "data")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def damage(data: Path, *indices: int) -> None:
    """Cut photos off after their headers."""
    for index in indices:
        photo = data / "VOCdevkit/VOC2012/JPEGImages" / f"2007_{index:06}.jpg"
        photo.write_bytes(photo.read_bytes()[:400])


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


@pytest.mark.slow
def test_a_file_that_cannot_grow_leaves_the_previous_state(data: Path, tmp_path: Path) -> None:
    config = make_recipe()
    run(config.model_copy(update={"iterations": 2}), data, tmp_path / "run")
    before = (tmp_path / "run" / STATE).read_bytes()
    with (
        files_at_most(len(before) // 2),
        pytest.raises(
            TrainingError, match=r"File too large.*the state after iteration 2 is intact"
        ),
    ):
        run(config, data, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / STATE).read_bytes() == before
    assert not list((tmp_path / "run").glob(".*partial"))


@pytest.mark.slow
def test_a_disk_that_is_full_when_flushing_leaves_the_previous_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_recipe()
    whole = run(config, data, tmp_path / "whole")
    run(config.model_copy(update={"iterations": 2}), data, tmp_path / "run")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            TrainingError, match=r"No space left on device: .*; make room and continue"
        ):
            run(config, data, tmp_path / "full")
    assert not (tmp_path / "full" / STATE).exists()
    assert run(config, data, tmp_path / "full", resume=True).read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_weights_that_are_not_finite_are_never_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss before the step was finite, so only the weights show it."""
    run(make_recipe(iterations=2), data, tmp_path / "run")
    before = (tmp_path / "run" / STATE).read_bytes()
    update = step.update

    def overflowing(run: Any, loss: float, config: Any) -> None:
        update(run, loss, config)
        with torch.no_grad():
            run.net.logits.bias[3] = float("nan")

    monkeypatch.setattr(step, "update", overflowing)
    with pytest.raises(TrainingError, match=r"logits\.bias is not finite after iteration 3"):
        run(make_recipe(iterations=3), data, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / STATE).read_bytes() == before


@pytest.mark.slow
def test_the_first_validation_keeps_no_weights_that_are_not_finite(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mIoU would be finite, because argmax picks the first class if logits are not a number."""
    update = step.update

    def overflowing(run: Any, loss: float, config: Any) -> None:
        update(run, loss, config)
        with torch.no_grad():
            run.net.logits.bias[3] = float("nan")

    monkeypatch.setattr(step, "update", overflowing)
    with pytest.raises(TrainingError, match=r"logits\.bias is not finite after iteration 1"):
        run(make_recipe(validation_split="train", validate_every=1), data, tmp_path / "run")
    assert not list((tmp_path / "run").glob("best.*"))


@pytest.mark.slow
def test_a_checkpoint_without_room_for_its_description_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_recipe()
    state = assembly.build(config).state_dict()
    card = Card(model=config.model, classes=VOC_CLASSES, palette=voc_palette(21))
    checkpoint.save(tmp_path / "best", state, card)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    flush = files.flush

    def full(path: Path) -> None:
        if ".json" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    monkeypatch.setattr(files, "flush", full)
    other = {key: value + 1 for key, value in state.items()}
    with pytest.raises(OSError, match=r"No space left on device.*best\.json"):
        checkpoint.save(tmp_path / "best", other, card)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_a_log_that_cannot_be_written_is_named(data: Path, tmp_path: Path) -> None:
    run(make_recipe(iterations=2), data, tmp_path / "run")
    room = (tmp_path / "run" / LOG).stat().st_size
    with (
        files_at_most(room),
        pytest.raises(TrainingError, match=r"log\.jsonl cannot be written.*iteration 2 is intact"),
    ):
        run(make_recipe(), data, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_run_that_begins_again_begins_its_log_again(data: Path, tmp_path: Path) -> None:
    """A run that was killed before its first state begins again with --out and with --resume."""
    for folder, resume in ((tmp_path / "out", False), (tmp_path / "resumed", True)):
        folder.mkdir()
        (folder / LOG).write_text('{"iteration": 1, "loss": 9.0}\n{"itera')
        run(make_recipe(iterations=2), data, folder, resume=resume)
        assert [line["iteration"] for line in lines(folder)] == [1, 2]


@pytest.mark.slow
def test_a_checkpoint_that_finds_no_room_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    config = make_recipe()
    net = assembly.build(config)
    card = Card(model=config.model, classes=VOC_CLASSES, palette=voc_palette(21))
    with files_at_most(1000), pytest.raises(OSError, match=r"File too large.*best\.safetensors"):
        checkpoint.save(tmp_path / "best", net.state_dict(), card)
    assert not list(tmp_path.iterdir())


def test_a_damaged_state_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    run(make_recipe(iterations=1), data, tmp_path / "run")
    state = tmp_path / "run" / STATE
    state.write_bytes(state.read_bytes()[:5000])
    with pytest.raises(TrainingError, match=r"state\.pt cannot be read"):
        run(make_recipe(), data, tmp_path / "run", resume=True)
    state.write_bytes(b"no state")
    with pytest.raises(TrainingError, match=r"state\.pt cannot be read"):
        kept(tmp_path / "run")
    for other in ([1, 2], {"net": 1}):
        torch.save(other, state)
        with pytest.raises(TrainingError, match=r"state\.pt cannot be read: it is not the state"):
            kept(tmp_path / "run")


@pytest.mark.slow
def test_resuming_with_another_recipe_is_reported(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(make_recipe(iterations=1), data, tmp_path / "run")
    run(make_recipe(iterations=1), data, tmp_path / "run", resume=True)
    assert "another recipe" not in caplog.text
    run(make_recipe(batch_size=2), data, tmp_path / "run", resume=True)
    assert "iterations=6 (before: 1)" in caplog.text
    assert "batch_size=2 (before: 4)" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": make_recipe().model.model_copy(update={"aspp_channels": 8})}, "channels=8"),
        ({"frozen": ["backbone.stem"]}, "frozen="),
    ],
)
def test_a_state_of_another_network_is_refused_and_kept(
    data: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    run(make_recipe(iterations=1), data, tmp_path / "run")
    before = (tmp_path / "run" / STATE).read_bytes()
    with pytest.raises(TrainingError, match=rf"does not fit this recipe: .*{says}.*\(before"):
        run(make_recipe(**change), data, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / STATE).read_bytes() == before


@pytest.mark.slow
def test_averaging_that_is_added_on_resuming_starts_with_the_current_weights(
    data: Path, tmp_path: Path
) -> None:
    config = make_recipe(ema_decay=0.0, iterations=2)
    run(config, data, tmp_path / "run")
    weights = torch.load(tmp_path / "run" / STATE, weights_only=True)["net"]
    later = assembly.start(make_recipe(ema_decay=0.9), World())
    restore(later, tmp_path / "run")
    assert later.average is not None
    assert all(torch.equal(later.average[key], value) for key, value in weights.items())


@pytest.mark.slow
def test_a_terminal_shows_validations_and_skips_above_the_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    folder = RunFolder(tmp_path, World())
    folder.write(4, loss=0.5, learning_rate=0.1)
    folder.write(4, miou=0.25, iou={"cat": 0.25})
    folder.write(5, skipped="a.jpg cannot be read")
    shown = capsys.readouterr().err
    assert shown == "iteration 4  miou 0.25\niteration 5  skipped a.jpg cannot be read\n"


@pytest.mark.slow
def test_a_damaged_photo_is_replaced_by_the_next_position(data: Path) -> None:
    damage(data, 3)
    crops = CropDataset(
        find("voc", data, "train"), Order(6, seed=0), AugmentConfig(crop=33), (127.5,) * 3
    )
    position = next(i for i in range(5) if crops.order[i] == 3)
    sample = crops[position]
    (line,) = sample.skipped
    assert re.search(r"2007_000003\.jpg cannot be read: \w+", line)
    again = crops[position]
    assert torch.equal(sample.image, again.image)
    assert not torch.equal(sample.image, crops[position + 1].image)  # another crop of that pair


@pytest.mark.slow
def test_a_set_of_damaged_photos_is_an_error(data: Path) -> None:
    damage(data, *range(6))
    crops = CropDataset(
        find("voc", data, "train"), Order(6, seed=0), AugmentConfig(crop=33), (127.5,) * 3
    )
    with pytest.raises(DatasetError, match=f"{ATTEMPTS} samples in a row cannot be read"):
        crops[0]


@pytest.mark.slow
def test_a_missing_photo_is_an_error_and_not_skipped_as_damaged(data: Path) -> None:
    dataset = find("voc", data, "train")
    dataset.pairs[0].image.unlink()
    crops = CropDataset(dataset, Order(6, seed=0), AugmentConfig(crop=33), (127.5,) * 3)
    with pytest.raises(FileNotFoundError):
        crops[next(i for i in range(6) if crops.order[i] == 0)]


@pytest.mark.slow
def test_skips_are_logged_counted_and_the_same_when_resumed(data: Path, tmp_path: Path) -> None:
    damage(data, 3)
    whole = run(make_recipe(), data, tmp_path / "whole", workers=1)
    skipped = [line["skipped"] for line in lines(tmp_path / "whole") if "skipped" in line]
    assert 2 <= len(skipped) <= 6
    assert torch.load(tmp_path / "whole" / STATE, weights_only=True)["skipped"] == len(skipped)
    with pytest.raises(TrainingError, match=r"max_skips is 1.*raise max_skips") as caught:
        run(make_recipe(max_skips=1), data, tmp_path / "cut")
    assert "2007_000003.jpg" in str(caught.value)
    resumed = run(make_recipe(), data, tmp_path / "cut", resume=True)
    assert whole.read_bytes() == resumed.read_bytes()
    assert [line["skipped"] for line in lines(tmp_path / "cut") if "skipped" in line] == skipped


@pytest.mark.slow
def test_a_set_that_cannot_be_read_stops_the_run_with_one_line(data: Path, tmp_path: Path) -> None:
    find("voc", data, "train").pairs[0].image.unlink()
    with pytest.raises(TrainingError, match=r"No such file.*2007_000000\.jpg") as caught:
        run(make_recipe(), data, tmp_path / "run", workers=1)
    assert "\n" not in str(caught.value)
    # Although the traceback holds the loop's frames:
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_full_shared_memory_ends_the_run_with_advice(data: Path, tmp_path: Path) -> None:
    """The loader cannot hand the batch over. PyTorch alone loses it and waits for ever.

    A limit on the size of files stands for a small /dev/shm: shared memory is a file too.
    """
    with (
        files_at_most(4096),
        pytest.raises(TrainingError, match=r"^a batch of .*shared memory.*--shm-size.*--workers 0"),
    ):
        run(make_recipe(batch_size=8), data, tmp_path / "run", workers=1)


def hang(data: Path) -> None:
    """Every photo becomes a pipe that nobody writes to, as on a disk that does not answer."""
    for photo in (data / "VOCdevkit/VOC2012/JPEGImages").iterdir():
        photo.unlink()
        os.mkfifo(photo)


def interrupt() -> None:
    """Send SIGINT once the run handles it. Earlier, it would end the tests."""
    while not isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), StopSignals):
        time.sleep(0.01)
    time.sleep(0.5)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_signal_ends_a_run_whose_disk_does_not_answer(data: Path, tmp_path: Path) -> None:
    hang(data)
    sender = threading.Thread(target=interrupt, daemon=True)
    sender.start()
    with pytest.raises(TrainingError, match="stopped by a signal after iteration 0"):
        run(make_recipe(), data, tmp_path / "run", workers=1)
    sender.join(timeout=5)
    assert not sender.is_alive()
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("while_waiting", [True, False])
def test_a_signal_ends_a_run_whose_loader_process_is_stopped(
    data: Path, tmp_path: Path, *, while_waiting: bool
) -> None:
    """It has announced batches, and PyTorch waits without a timeout for their memory."""
    take = step.train_step

    def send() -> None:
        time.sleep(2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # as `kill` does

    sender = threading.Thread(target=send, daemon=True)

    def stopping(*args: Any, **options: Any) -> float:
        loss = take(*args, **options)
        time.sleep(1)  # meanwhile the next batches are announced
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGSTOP)
        if while_waiting:
            sender.start()
        else:
            signal.raise_signal(signal.SIGINT)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.train.training.train_step", stopping)
        with pytest.raises(TrainingError, match="stopped by a signal after iteration 1"):
            run(make_recipe(), data, tmp_path / "run", workers=1)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_disk_that_never_answers_ends_the_run_with_advice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang(data)
    monkeypatch.setattr(loader, "LOST_AFTER_S", 1.5)
    with pytest.raises(TrainingError, match="no batch came in 2 s: the disk"):
        run(make_recipe(), data, tmp_path / "run", workers=1)
    assert not multiprocessing.active_children()


SIGNALS = """
import signal
from model.train.run import SECOND_SIGNAL_S, StoppedAtOnce, StopSignals
with StopSignals() as signals:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    print("noted", signals.received)
    signals.at -= SECOND_SIGNAL_S + 1
    try:
        signal.raise_signal(signal.SIGINT)
    except StoppedAtOnce:
        print("stopped")
"""


@pytest.mark.slow
def test_a_second_signal_stops_at_once() -> None:
    """The first signal may wait for ever. torchrun's copy of Ctrl-C does not count as a second."""
    command = [sys.executable, "-c", SIGNALS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["noted", "True", "stopped"]


@pytest.mark.slow
def test_a_killed_loader_process_ends_the_run_with_advice(data: Path, tmp_path: Path) -> None:
    """The message is not PyTorch's error from inside a convolution."""
    take = step.train_step

    def killing(*args: Any, **options: Any) -> float:
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()
        time.sleep(0.2)
        return take(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_step", killing)
        with pytest.raises(TrainingError, match=r"signal 9 \(SIGKILL\).*fewer --workers"):
            run(make_recipe(iterations=30), data, tmp_path / "run", workers=1)


@pytest.mark.slow
def test_an_error_of_a_loader_process_is_shown_without_its_class() -> None:
    raised = RuntimeError("Caught\n  File\nmodel.data.pairs.DatasetError: a.jpg is missing")
    assert reason(raised) == "a.jpg is missing"
    assert reason(OSError("[Errno 2] No such file: 'a'")) == "[Errno 2] No such file: 'a'"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["judging", "judged"])
def test_a_run_killed_while_validating_continues_there(
    data: Path, tmp_path: Path, moment: str
) -> None:
    """The state is saved before validating, and a validation that was cut off runs once more."""
    config = make_recipe(iterations=4, validation_split="train", validate_every=3)
    whole = run(config, data, tmp_path / "whole")
    keep, judge = validation.keep, validation.judge

    def killed(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "judge" if moment == "judging" else "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, data, tmp_path / "cut")
    assert torch.load(tmp_path / "cut" / STATE, weights_only=True)["iteration"] == 3
    assert (validation.keep, validation.judge) == (keep, judge)
    assert run(config, data, tmp_path / "cut", resume=True).read_bytes() == whole.read_bytes()
    assert (tmp_path / "cut/best.safetensors").read_bytes() == (
        tmp_path / "whole/best.safetensors"
    ).read_bytes()
    judged = [
        [(line["iteration"], line["miou"]) for line in lines(tmp_path / name) if "miou" in line]
        for name in ("whole", "cut")
    ]
    assert judged[0] == judged[1]
    assert len(judged[0]) == 1


@pytest.mark.slow
def test_a_pair_that_would_end_the_first_validation_is_refused_at_the_start(data: Path) -> None:
    dataset = find("voc", data, "train")
    preflight.check_validation_pairs(dataset)
    Image.new("RGB", (9, 9)).save(dataset.pairs[3].image)
    with pytest.raises(DatasetError, match=r"'train': .*2007_000003\.jpg is 9 x 9, its mask .* 48"):
        preflight.check_validation_pairs(dataset)
    colours = dataset.pairs[2].mask
    assert isinstance(colours, Path)
    with Image.open(colours) as mask:
        mask.convert("RGB").save(colours)
    with pytest.raises(DatasetError, match=r"2007_000002\.png has mode RGB.*not colours"):
        preflight.check_validation_pairs(dataset)
    dataset.pairs[1].image.unlink()
    with pytest.raises(DatasetError, match=r"No such file.*2007_000001\.jpg"):
        preflight.check_validation_pairs(dataset)


@pytest.mark.slow
def test_resuming_with_other_photos_or_fewer_iterations_is_reported(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(make_recipe(iterations=3), data, tmp_path / "run")
    voc_folder.make(data, count=8)
    run(make_recipe(iterations=2), data, tmp_path / "run", resume=True)
    assert "the training set has 8 photos, 6 when the run was last saved" in caplog.text
    assert "iterations=2, and 3 are done: nothing is left to train" in caplog.text


@pytest.mark.slow
def test_the_error_of_running_out_of_memory_says_how_to_use_less(tmp_path: Path) -> None:
    for failing in (lambda: torch.empty(10**15), lambda: bytearray(10**15)):
        with (
            pytest.raises(TrainingError, match=r"accumulate .*checkpointing=true.*batch_size"),
            memory_advice(tmp_path),
        ):
            failing()
    with pytest.raises(RuntimeError, match="must match"), memory_advice(tmp_path):
        torch.ones(2) + torch.ones(3)


@pytest.mark.slow
@limits.needs_linux
def test_running_out_of_memory_while_validating_names_what_takes_less(
    data: Path, tmp_path: Path
) -> None:
    """Crops of 33 pixels fit, photos padded to 16,384 do not; the trained state is kept."""
    model = TINY.model_copy(update={"crop_size": (limits.LARGEST, limits.LARGEST)})
    config = make_recipe(model=model, validation_split="train", validate_every=1)
    with (
        limits.memory_at_most(),
        pytest.raises(
            TrainingError, match=r"while validating.*lower that, or set validate_every=0"
        ),
    ):
        run(config, data, tmp_path / "run")
    assert (tmp_path / "run" / STATE).exists()


def test_a_log_is_cut_back_to_the_state(tmp_path: Path) -> None:
    path = tmp_path / LOG
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iteration": 3}\n{"itera')
    rewind(path, 2)
    assert path.read_text() == '{"iteration": 1}\n{"iteration": 2}\n'


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(data: Path, tmp_path: Path) -> None:
    """Killing it twice while iterating, saving or validating does not change its result."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'split = "train"\niterations = 12\nbatch_size = 4\nema_decay = 0.9\n'
        'validation_split = "train"\nvalidate_every = 4\n[augment]\ncrop = 33\n'
        '[model]\nbackbone = "mobilenet_v2"\ndepth_multiplier = 0.25\naspp_channels = 16\n'
        "crop_size = [65, 65]\n"
    )
    command = [sys.executable, "-m", "model.train", str(recipe), "--data", str(data)]
    command += ["--workers", "0", "--save-every", "1", "--log-every", "1"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    cut.mkdir()  # --resume starts at 0 if there is no state yet
    for reached in (3, 8):
        process = subprocess.Popen([*command, "--resume", str(cut)], stderr=subprocess.DEVNULL)
        while not (cut / LOG).exists() or f'"iteration": {reached}' not in (cut / LOG).read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "--resume", str(cut)], check=True, capture_output=True)
    for name in ("model", "best"):
        assert (cut / f"{name}.safetensors").read_bytes() == (
            whole / f"{name}.safetensors"
        ).read_bytes()
    timing = ("crops_per_second", "waiting")
    logs = [
        [{k: v for k, v in x.items() if k not in timing} for x in lines(d)] for d in (cut, whole)
    ]
    assert logs[0] == logs[1]
