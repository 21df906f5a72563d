"""Atomic writes leave the old file or the complete new one, and no other file."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from model import files


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_flushed_before_its_rename_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, seen = tmp_path / "a.json", []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        seen.append((kind, target.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    with files.replacing(target) as partial:
        partial.write_bytes(b"new")
    assert seen == [("file", False), ("folder", True)]
    assert listing(tmp_path) == {"a.json": b"new"}


def test_an_error_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_bytes(b"old")

    def write_half(partial: Path) -> None:
        partial.write_bytes(b"ne")
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"), files.replacing(target) as partial:
        write_half(partial)
    assert listing(tmp_path) == {"a.json": b"old"}


def test_the_error_of_a_full_disk_names_the_file_and_no_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"old")
    flush = files.flush

    def full(path: Path) -> None:
        if ".b." in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/b'"):
        files.write({first: b"new", second: b"new"})
    assert listing(tmp_path) == {"a": b"old"}


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), files.replacing(tmp_path / "a"):
        (tmp_path / "absent").read_bytes()
