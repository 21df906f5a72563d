"""Two trainings never write to one folder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from model.train import lock
from model.train.distributed import World
from model.train.lock import locked
from model.train.run import TrainingError


def test_a_second_training_in_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the first one ends."""
    monkeypatch.setattr(lock, "WAIT_S", 0.0)
    with (
        locked(tmp_path / "run", World()),
        pytest.raises(TrainingError, match="another training is running in this folder"),
        locked(tmp_path / "run", World()),
    ):
        pass
    with locked(tmp_path / "run", World()):
        pass


def test_a_lock_that_is_about_to_be_dropped_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loader processes of a killed training end seconds after it."""
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(other, fcntl.LOCK_UN))
    with locked(tmp_path, World()):
        assert "is held by another training" in caplog.text
    os.close(other)


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_: int, __: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path / "run", World()):
        assert (tmp_path / "run").is_dir()
