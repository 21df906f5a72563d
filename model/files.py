"""Write files atomically: after a crash a file is either the old one or the complete new one.

Each file is written beside its target, flushed to the disk and renamed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a path to write to; put it in the place of `target` when the block ends.

    After an error the old file stays and the new one is removed; an OSError names
    `target`. `durable=False` does not wait for the disk, for many files that the
    next run checks: after a power cut some may then be empty.
    """
    partial = beside(target)
    try:
        with _naming(partial, target):
            yield partial
            if durable:
                flush(partial)
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        _flush_folder(target.parent)


def write(contents: dict[Path, bytes]) -> None:
    """Write files that belong together, renamed in order once all are on the disk.

    If it is killed between two renames, the remaining files stay complete `beside` their targets,
    and a reader can finish the renames. An OSError before the first rename leaves nothing behind.
    """
    partials = {target: beside(target) for target in contents}
    try:
        for target, partial in partials.items():
            with _naming(partial, target):
                partial.write_bytes(contents[target])
                flush(partial)
    except BaseException:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise
    _rename(partials)
    for folder in {target.parent for target in contents}:
        _flush_folder(folder)


def _rename(partials: dict[Path, Path]) -> None:
    """Rename every file to its target, or none if the first rename fails."""
    first = True
    for target, partial in partials.items():
        try:
            partial.replace(target)
        except OSError:
            for each in partials.values() if first else ():
                each.unlink(missing_ok=True)
            raise
        first = False


def flush(path: Path) -> None:
    """Return once a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def beside(target: Path) -> Path:
    """The temporary path that a file has before it is renamed to `target`."""
    return target.with_name(f".{target.name}.partial")


@contextmanager
def _naming(partial: Path, target: Path) -> Iterator[None]:
    """Name `target` in the OSErrors of writing `partial`: a full disk names no file at all."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(partial)):
            raise  # about another file
        raise OSError(error.errno, error.strerror, str(target)) from error


def _flush_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the file system can promise that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
