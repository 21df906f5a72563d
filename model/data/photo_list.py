"""List photos without masks from a folder or a text file."""

from __future__ import annotations

from pathlib import Path

from model.data.folder import SUFFIXES
from model.data.pairs import DatasetError, read_names


def find_photos(where: Path) -> tuple[Path, ...]:
    """List the photos in a folder and the folders below it, or those that a text file names.

    The file has one path per line, relative to its own folder. Raises DatasetError if there is
    no photo, or if a photo that the file names is missing.
    """
    if where.is_dir():
        found = [path for path in sorted(where.rglob("*")) if _is_photo(path)]
    else:
        found = [where.parent / name for name in read_names(where)]
    if not found:
        raise DatasetError(f"{where} holds no photo ({', '.join(SUFFIXES)})")
    for path in found:
        if not path.is_file():
            raise DatasetError(f"{path}, which {where} names, does not exist")
    return tuple(found)


def _is_photo(path: Path) -> bool:
    """macOS leaves a hidden ._NAME.jpg beside each file that it copies."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
