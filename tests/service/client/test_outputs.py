"""Result files are complete or absent, and reports survive a power cut."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from service.client.outputs import replacing, write_files


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what is flushed to the disk, in order: file or folder."""
    seen: list[str] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        seen.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    return seen


def test_a_report_is_on_the_disk_with_its_name(tmp_path: Path, flushed: list[str]) -> None:
    with replacing(tmp_path / "a") as path:
        path.write_bytes(b"new")
    assert flushed == ["file", "folder"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_photos_files_do_not_wait_for_the_disk(tmp_path: Path, flushed: list[str]) -> None:
    assert write_files(tmp_path, "x/a", {"mask.png": b"123"}) == {"x/a.mask.png": 3}
    assert flushed == []


def test_an_error_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def write_half(path: Path) -> None:
        path.write_bytes(b"ne")
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"), replacing(tmp_path / "a") as path:
        write_half(path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_file_with_the_longest_possible_name_is_written(tmp_path: Path) -> None:
    with replacing(tmp_path / ("a" * 255), writer=".1") as path:
        path.write_bytes(b"new")
    assert (tmp_path / ("a" * 255)).read_bytes() == b"new"


def test_two_writers_of_one_file_do_not_share_a_temporary_name(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with (
        replacing(target, durable=False, writer=".1") as first,
        replacing(target, durable=False, writer=".2") as second,
    ):
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert target.read_bytes() == b"first"  # the outer block ends last
