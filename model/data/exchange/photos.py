"""Find the photos that label files name: as they name them, or by what is left of the path."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

from model.data.folder import SUFFIXES
from model.data.pairs import DatasetError


class Photos:
    """The photos below a folder, by file name and by stem."""

    def __init__(self, root: Path) -> None:
        """List the folder; raises DatasetError if it holds no photo."""
        if not root.is_dir():
            raise DatasetError(f"--images {root}: there is no such folder")
        self.root = root
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file():
                self._by_name[path.name.lower()].append(path)
                self._by_stem[path.stem.lower()].append(path)
        if not self._by_name:
            raise DatasetError(f"--images {root} holds no photo ({', '.join(SUFFIXES)})")

    def __contains__(self, name: str) -> bool:
        """Whether some photo has this name."""
        return bool(self._named(name))

    def find(self, name: str) -> Path:
        """Find the photo of this name; of several, the one whose folders agree with the name.

        Upper and lower case count only where they alone tell photos apart.
        A name without a photo's suffix, or with another one, finds a photo with its stem.
        Raises DatasetError if no photo has it, or if the folders do not decide between several.
        """
        found = self._named(name)
        if not found:
            raise DatasetError(f"{name}: no such photo below {self.root}")
        wanted = _lower(name)
        agreed = [self._agreement(path, wanted) for path in found]
        best = [path for path, same in zip(found, agreed, strict=True) if same == max(agreed)]
        if len(best) > 1:
            parts = _posix(name).parts
            best = [path for path in best if path.parts[-len(parts) :] == parts] or best
        if len(best) > 1:
            raise DatasetError(f"{name}: {best[0]} or {best[1]}? The labels name no folder")
        return best[0]

    def _named(self, name: str) -> list[Path]:
        wanted = _lower(name)
        stem = wanted.stem if wanted.suffix in SUFFIXES else wanted.name
        return self._by_name.get(wanted.name) or self._by_stem.get(stem, [])

    def _agreement(self, path: Path, wanted: PurePosixPath) -> int:
        """How many folders agree, from the photo upwards."""
        have = [part.lower() for part in path.relative_to(self.root).parts[:-1]]
        want = list(wanted.parts[:-1])
        same = 0
        while have and want and have.pop() == want.pop():
            same += 1
        return same


def _lower(name: str) -> PurePosixPath:
    return _posix(name.lower())


def _posix(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))


def unique_names(photos: list[Path], root: Path) -> list[str]:
    """A name for each photo in a folder without subfolders: its stem, with its folders if needed.

    Upper and lower case count as equal, because some file systems do not distinguish them.
    """
    stems: dict[str, int] = defaultdict(int)
    for path in photos:
        stems[path.stem.lower()] += 1
    names, taken = [], set()
    for path in photos:
        inner = path.relative_to(root).with_suffix("")
        name = path.stem if stems[path.stem.lower()] == 1 else "__".join(inner.parts)
        while name.lower() in taken:  # a.jpg and a.png
            name += "_"
        taken.add(name.lower())
        names.append(name)
    return names
