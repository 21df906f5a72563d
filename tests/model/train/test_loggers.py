"""A run's curves in MLflow and Weights & Biases, without a server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from wandb.proto import wandb_internal_pb2

from model.train import __main__ as train
from model.train.loggers import MLflow
from model.train.recipe import RecipeError
from tests.model import voc_folder
from tests.model.train.test_main import make_recipe

pytestmark = pytest.mark.slow

TINY = """
split = "train"
iterations = 3
batch_size = 4
validation_split = "train"
validate_every = 2
[augment]
crop = 33
[model]
backbone = "mobilenet_v2"
depth_multiplier = 0.25
aspp_channels = 16
crop_size = [65, 65]
"""
PACE = ["--workers", "0", "--log-every", "1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return voc_folder.make(tmp_path / "data")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MLflow's folder store, which needs no server."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    return tmp_path / "mlruns"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases without a network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def history(client: MlflowClient, run: str, key: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in client.get_metric_history(run, key)]


def test_mlflow_has_the_curves_the_recipe_and_the_overlays_and_resumes(
    data: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [str(tmp_path / "tiny.toml"), "--data", str(data), *PACE, "--mlflow"]
    assert train.main([*command, "--out", str(out)]) == 0
    longer = ["--set", "iterations=4"]
    assert train.main([*command, "--resume", str(out), *longer]) == 0
    run = (out / "mlflow.txt").read_text().strip()
    client = MlflowClient()
    assert [step for step, _ in history(client, run, "loss")] == [1, 2, 3, 4]
    assert [step for step, _ in history(client, run, "iou/person")] == [2, 4]
    params = client.get_run(run).data.params
    assert params["iterations"] == "3"
    assert params["model.backbone"] == "mobilenet_v2"
    assert len(list(store.rglob("overlays/*/000002.png"))) == 4


@pytest.mark.usefixtures("offline")
def test_weights_and_biases_keeps_the_curves_in_the_runs_folder(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [str(tmp_path / "tiny.toml"), "--data", str(data), *PACE, "--wandb"]
    assert train.main([*command, "--out", str(out)]) == 0
    (file,) = out.glob("wandb/offline-run-*/run-*.wandb")
    records = complete_records(file)
    assert (out / "wandb.txt").read_text().strip() in file.name
    assert len(list(file.parent.glob("files/media/images/*.png"))) == 4  # of one validation
    steps = [record.history.step.num for record in records if record.history.item]
    assert sorted(set(steps)) == [1, 2, 3]
    keys = {item.key or "/".join(item.nested_key) for r in records for item in r.history.item}
    assert {"loss", "miou", "iou/person"} <= keys


def complete_records(file: Path) -> list[Any]:
    """Wait for the record of the exit: another process writes the file, also after `finish`."""
    deadline = time.monotonic() + 60
    while True:
        records = read_records(file)
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < deadline
        time.sleep(0.1)


BLOCK = 32768  # bytes; the file is a log as LevelDB writes it, behind 7 bytes of its own
HEADER = 7  # checksum (4), size (2), kind (1)
FULL, LAST = 1, 4  # kinds of parts that end a record


def read_records(file: Path) -> list[Any]:
    """The records that the file of an offline run holds."""
    data, at, part, found = file.read_bytes(), HEADER, b"", []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of the block is empty
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + HEADER + size > len(data):  # it is being written
            break
        part += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined] # made at run time
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


@pytest.mark.usefixtures("store")
def test_a_store_that_fails_during_a_run_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = MLflow(tmp_path, make_recipe())
    board.run = "f" * 32  # a run that the store does not have
    board.scalars(1, {"loss": 1.0})
    board.scalars(2, {"loss": 1.0, "iou": {"a & b": 0.5}})
    assert caplog.text.count("MLflow does not accept this line; the training continues") == 1


def test_a_server_that_refuses_the_run_is_told_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://nowhere")
    with pytest.raises(RecipeError, match="set MLFLOW_TRACKING_URI to a server"):
        MLflow(tmp_path, make_recipe())
