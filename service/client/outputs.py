"""Putting a photo's files in place: each is complete, or not there.

Each file is written under a temporary name in its own folder and renamed. That
is atomic against a killed client. There is no fsync: after a power cut a file
may be short, which the next run notices by the size in the manifest; waiting
for the disk on each of 100,000 files would cost more than redoing those few.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def write_files(out: Path, stem: str, files: dict[str, bytes]) -> dict[str, int]:
    """Writes OUT/stem.NAME for each of `files`; returns path below OUT -> size in bytes."""
    (out / stem).parent.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, content in files.items():
        file = f"{stem}.{name}"
        write_atomically(out / file, content)
        written[file] = len(content)
    return written


def write_atomically(path: Path, content: bytes) -> None:
    """The temporary name is fixed: what a kill leaves behind, the next try overwrites."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def remove_files(out: Path, files: Iterable[str]) -> None:
    """Takes away the files of an earlier result that the new one does not have."""
    for file in files:
        (out / file).unlink(missing_ok=True)
