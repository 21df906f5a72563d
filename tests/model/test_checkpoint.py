"""Weights and card belong together: a kill or an edit never gives new weights with an old card."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.checkpoint import Card, CheckpointError
from model.data.dataset import voc_palette
from tests.model.nets import tiny

CHILD = """
import os, signal, sys
from pathlib import Path
from model import checkpoint
renames = 0
replace = Path.replace
def killed(self, target):
    global renames
    if renames == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    renames += 1
    return replace(self, target)
Path.replace = killed
card = checkpoint.read_card(sys.argv[1])
state = {key: value + 1 for key, value in checkpoint.read_weights(sys.argv[1]).items()}
checkpoint.save(sys.argv[1], state, card.model_copy(update={"source": "new"}))
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = tiny(2)
    card = Card(model=net.config, classes=("a", "b"), palette=voc_palette(2), source="old")
    return checkpoint.save(tmp_path / "net", net.state_dict(), card)


@pytest.mark.slow
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_kill_9_between_renames_leaves_the_old_pair_or_the_new_one(
    saved: Path, renames: int
) -> None:
    """Every reader gets the old pair before the first rename, and the new pair after it."""
    before = checkpoint.read_weights(saved)["logits.bias"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(saved), str(renames)], check=False, env=dict(os.environ)
    )
    assert done.returncode == (-signal.SIGKILL if renames < 2 else 0)
    source = checkpoint.read_card(saved).source
    bias = checkpoint.load(saved).state_dict()["logits.bias"]
    assert source == ("old" if renames == 0 else "new")
    assert torch.equal(bias, before if renames == 0 else before + 1)


def test_weights_of_another_checkpoint_are_refused(saved: Path, tmp_path: Path) -> None:
    """The shapes are the same, so only the digest shows the difference."""
    state = {key: value * 2 for key, value in checkpoint.read_weights(saved).items()}
    other = checkpoint.save(tmp_path / "other", state, checkpoint.read_card(saved))
    other.replace(saved)
    with pytest.raises(CheckpointError, match=r"net\.safetensors holds other weights than .*net"):
        checkpoint.load(saved)


def test_a_checkpoint_of_an_earlier_version_has_no_digest(saved: Path) -> None:
    card = saved.with_suffix(".json")
    table = json.loads(card.read_text())
    del table["weights_sha256"]
    card.write_text(json.dumps(table))
    checkpoint.load(saved)


@pytest.mark.slow
def test_figures_are_recorded_without_touching_the_weights(saved: Path) -> None:
    checkpoint.record_metrics(saved, {"miou": 0.5})
    assert checkpoint.read_card(saved).metrics == {"miou": 0.5}
    checkpoint.load(saved)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("aspp_channels", 200_000, r"aspp_channels=200000: .*8192"),
        ("decoder_channels", 200_000, r"decoder_channels=200000: .*8192"),
        ("decoder_channels", 8000, r"tensors differ, such as .* and should be \(.*8000"),
        ("depth_multiplier", 1e9, "depth_multiplier=1000000000.0: .*16"),
        ("atrous_rates", [6] * 100_000, r"atrous_rates=.*\.\.\.: .*at most 16"),
        ("crop_size", [10**6, 10**6], "crop_size.0=1000000: .*16384"),
        ("mean", [float("nan")] * 3, "mean.0=nan: .*finite"),
        ("std", [0.0, 1.0, 1.0], "divides the pixels"),
        ("num_classes", 10**300, "num_classes=1000"),
    ],
)
def test_a_hostile_card_ends_in_a_clear_error(
    saved: Path, key: str, value: object, says: str
) -> None:
    card = saved.with_suffix(".json")
    table = json.loads(card.read_text())
    table["model"][key] = value
    card.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=says) as caught:
        checkpoint.load(saved)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 200_000, "nested too deep"),
        ('{"model": ' + "9" * 10_000 + "}", "not a checkpoint description"),
        ("[]", "not a checkpoint description"),
        ("\ud800".encode("utf-16", "surrogatepass").decode("latin-1"), "not a checkpoint"),
    ],
)
def test_json_of_any_form_ends_in_a_clear_error(saved: Path, text: str, says: str) -> None:
    saved.with_suffix(".json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load(saved)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_only_regular_files_are_read(saved: Path, suffix: str) -> None:
    """Opening a FIFO waits for a writer; for the weights, not even Ctrl-C ends that wait."""
    path = saved.with_suffix(suffix)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        checkpoint.load(saved)


def test_a_card_that_is_far_too_large_is_not_read(saved: Path) -> None:
    with saved.with_suffix(".json").open("wb") as file:
        file.truncate(20_000_000)
    with pytest.raises(CheckpointError, match="has 20 MB and is not a checkpoint description"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("name", "converter"), [("best.pth", "torchvision"), ("net.tflite", "tf"), ("net.pb", "tf")]
)
def test_a_file_of_another_project_is_answered_with_the_command_that_converts_it(
    tmp_path: Path, name: str, converter: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"weights")
    command = f"model.convert {converter} {path} {path.with_suffix('')}`"
    with pytest.raises(CheckpointError, match=re.escape(command)):
        checkpoint.read_any_card(path)
