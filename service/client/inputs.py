"""Find the input photos, one at a time.

An input is a file, a folder (searched recursively), a glob, a tar, a URL, or `-` for paths and
URLs on stdin, one per line. A list of URLs has one a line too. Photos are found lazily and in
a fixed order (sorted within a folder). Memory stays flat: at most the names in one folder are
held.

A photo's name is its path below the base, with `/`; the output folder mirrors it. The base
is the deepest folder that contains all inputs (a tar counts as a folder, stdin as the
working directory). A path outside of the base keeps its absolute path as its name.
"""

from __future__ import annotations

import functools
import io
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import translate
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TextIO

from service.client import tars, urls
from service.client.errors import UsageError
from service.client.files import read_photo
from service.client.plain import plain
from service.client.protocol import ALL_FILES
from service.client.urls import is_url

STDIN = "-"
GLOB_SIGNS = "*?["
# All common suffixes of the formats that the service accepts: Windows and browsers write .jfif,
# cameras with two lenses .mpo.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".hif"),
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
OWN_SUFFIXES = tuple(f".{name}" for name in sorted(ALL_FILES))
OTHER_SUFFIXES, OTHERS_NAMED = 20, 10  # suffixes counted separately, and files named
OWN_NAMES = ("contact-sheet.png",)  # the only image that a report consists of


@dataclass(frozen=True, slots=True)
class InputPhoto:
    """An input; `size` is -1 if it cannot be read, and `read` then raises the reason."""

    name: str  # "a/b.jpg", the path below OUT that its outputs mirror
    source: str  # an absolute path, "/x/photos.tar!a/b.jpg", or a URL
    size: int
    mtime_ns: int
    read: Callable[[], bytes]
    fleeting: bool = False  # must be read before the next photo is listed; is then kept
    url: str | None = None  # fetched by the service, not read by the client


@dataclass
class Others:
    """The files that were left out because of their names."""

    counts: Counter[str] = field(default_factory=Counter)  # suffix -> files
    names: list[str] = field(default_factory=list)  # the first of them

    def add(self, name: str) -> None:
        """Count a file."""
        suffix = PurePosixPath(name).suffix.lower() or "without a suffix"
        is_known = suffix in self.counts or len(self.counts) < OTHER_SUFFIXES
        self.counts[suffix if is_known else "of other suffixes"] += 1
        if len(self.names) < OTHERS_NAMED:
            self.names.append(_printable(name))

    def text(self) -> str:
        """`3 files left out: 2 .mp3, 1 .txt (a.mp3, b.mp3, c.txt)`; empty if there are none."""
        if not self.counts:
            return ""
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in self.counts.most_common())
        total = self.counts.total()
        names = ", ".join(self.names) + (", ..." if total > len(self.names) else "")
        return f"{total} file{'s' * (total > 1)} left out: {kinds} ({names})"


@dataclass(frozen=True)
class Inputs:
    """The inputs of the command line; iterate over it to get photos."""

    arguments: tuple[str, ...]
    base: Path
    out: Path  # results in this folder are not inputs
    listing: TextIO
    others: Others = field(default_factory=Others)  # left out so far
    url_list: str | None = None  # a file with URLs, or `-`

    @classmethod
    def of(
        cls,
        arguments: list[str],
        *,
        out: Path,
        listing: TextIO,
        base: Path | None = None,
        url_list: str | None = None,
    ) -> Inputs:
        """Check that every input exists; raises UsageError."""
        if url_list not in {None, STDIN} and not Path(url_list or "").is_file():
            raise UsageError(f"--urls {url_list}: no such file")
        local = [argument for argument in arguments if not is_url(argument)]
        for argument in local:
            if argument == STDIN or os.path.lexists(argument):
                continue
            if not _is_glob(argument):
                raise UsageError(f"input {argument!r}: no such file or folder")
            if not _has_match(argument, out):
                raise UsageError(f"input {argument!r}: the pattern matches no file")
        roots = [_root(argument) for argument in local] or [Path.cwd()]
        common = base.absolute() if base else Path(os.path.commonpath(roots))
        return cls(tuple(arguments), _normal(common), _normal(out), listing, url_list=url_list)

    def __iter__(self) -> Iterator[InputPhoto]:
        for argument in self.arguments:
            if argument == STDIN:
                lines = (line.rstrip("\r\n") for line in self.listing)
                yield from map(self._listed, filter(str.strip, lines))
            elif is_url(argument):
                yield self._remote(argument)
            elif _is_tar(argument):
                yield from self._archived(_normal(Path(argument)))
            else:
                yield from map(self._photo, self._paths(argument, self.others))
        yield from map(self._remote, self._urls())

    def count(self) -> int | None:
        """Count the photos; return None if that needs reading stdin or a tar."""
        if STDIN in {*self.arguments, self.url_list} or any(map(_is_tar, self.arguments)):
            return None
        local = (each for each in self.arguments if not is_url(each))
        remote = chain(filter(is_url, self.arguments), self._urls())
        return sum(1 for each in local for _ in self._paths(each)) + sum(1 for _ in remote)

    def named(self) -> list[str]:
        """Return the inputs as they were given."""
        return [*self.arguments, *([f"--urls {self.url_list}"] if self.url_list else [])]

    def _urls(self) -> Iterator[str]:
        """Yield the URLs of the list."""
        if self.url_list == STDIN:
            yield from urls.lines(self.listing)
        elif self.url_list is not None:
            with Path(self.url_list).open(encoding="utf-8", errors="replace") as file:
                yield from urls.lines(file)

    def _paths(self, argument: str, others: Others | None = None) -> Iterator[Path]:
        path = Path(argument)
        if path.is_dir():
            yield from walk(_normal(path), self.out, others)
        elif os.path.lexists(path):
            yield _normal(path)
        else:
            prefix, pattern = _split_glob(argument)
            yield from expand(prefix, pattern, self.out, others)

    def _listed(self, line: str) -> InputPhoto:
        return self._remote(line.strip()) if is_url(line) else self._photo(_normal(Path(line)))

    def _remote(self, url: str) -> InputPhoto:
        """Return a photo that the service fetches; the content of a URL counts as unchanged."""
        read = unreadable("the service fetches it")
        try:
            name = urls.name_of(url)
        except ValueError as error:
            reason = f"{url[:200]} is no URL: {error}"
            return InputPhoto(_printable(url[:200]), _printable(url), -1, 0, unreadable(reason))
        return InputPhoto(_printable(name), _printable(url), 0, 0, read, url=url)

    def _photo(self, path: Path) -> InputPhoto:
        try:
            stat = path.stat()
            size, mtime_ns = stat.st_size, _in_sqlite(stat.st_mtime_ns)
        except (OSError, ValueError):  # ValueError: a zero byte in a list on stdin
            size, mtime_ns = -1, 0
        return InputPhoto(
            _name(path, self.base),
            _printable(str(path)),
            size,
            mtime_ns,
            functools.partial(read_photo, path),
        )

    def _archived(self, archive: Path) -> Iterator[InputPhoto]:
        """Yield the photos in a tar, read from front to back."""
        try:
            with tars.opened(archive) as tar:
                for member in tars.members(tar):
                    path = _harmless(member.name)
                    if member.isfile() and is_image(path.name):
                        yield self._member(archive, tar, member, path)
                    elif member.isfile() and not path.name.startswith("."):
                        self.others.add(str(path))
        except tars.ERRORS as error:
            yield self._broken(archive, f"{archive.name} cannot be read to its end: {error}")

    def _member(
        self, archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, path: PurePosixPath
    ) -> InputPhoto:
        return InputPhoto(
            _printable(_below(archive, self.base) / path),
            _printable(f"{archive}!{member.name}"),
            _in_sqlite(member.size),
            _in_sqlite(member.mtime * 1e9),
            functools.cache(functools.partial(tars.read, archive.name, tar, member)),
            fleeting=True,
        )

    def _broken(self, path: Path, reason: str) -> InputPhoto:
        name, source = _name(path, self.base), _printable(str(path))
        return InputPhoto(name, source, -1, 0, unreadable(reason))


def unreadable(reason: str) -> Callable[[], bytes]:
    """Return the `read` of a photo that cannot be read: it raises OSError with the reason."""

    def read() -> bytes:
        raise OSError(reason)

    return read


def stdin() -> TextIO:
    """Return stdin for lists of files, whose names may be any bytes."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin


def nothing_found(arguments: Iterable[str], others: Others) -> UsageError:
    """Return the error for inputs without any photo: probably the wrong inputs."""
    left_out = f"; {others.text()}" if others.counts else ""
    return UsageError(
        f"no photo found in {', '.join(arguments)}{left_out}; the service takes JPEG, PNG, WebP, "
        "BMP, TIFF, AVIF and HEIC: name a folder or a tar that holds some, or the files themselves"
    )


def is_image(name: str) -> bool:
    """Return whether a file is an image by its suffix, and not hidden (like macOS's `._x.jpg`)."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def walk(
    folder: Path,
    out: Path,
    others: Others | None = None,
    above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[Path]:
    """Yield every photo below a folder, sorted, and folders that cannot be listed.

    Links to folders are followed, unless they lead back to a parent folder. Other files go to
    `others`, except hidden ones and those in OUT.
    """
    try:
        stat = folder.stat()
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names take a tenth of Path objects' memory
    except OSError:
        yield folder
        return
    identity = (stat.st_dev, stat.st_ino)
    if identity in above:
        return
    inside_out = folder == out or out in folder.parents
    for name in names:
        path = folder / name
        if is_image(name):
            if not (inside_out and _is_own(name)) and not path.is_dir():
                yield path
        elif name.startswith(".") or path == out:
            continue
        elif path.is_dir():
            yield from walk(path, out, others, above | {identity})
        elif others is not None and not inside_out:
            others.add(name)


def expand(
    folder: Path, pattern: tuple[str, ...], out: Path, others: Others | None = None
) -> Iterator[Path]:
    """Yield the files below a folder that match a glob, sorted; `**` matches any folders."""
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        if not rest:
            yield from walk(folder, out, others)
            return
        yield from expand(folder, rest, out, others)
    matches = re.compile(translate("*" if head == "**" else head)).match
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():  # noqa: PTH208 - as in walk
        path = folder / name
        if name.startswith(".") and not head.startswith("."):
            continue
        if head == "**" and path.is_dir() and path != out and not path.is_symlink():
            yield from expand(path, pattern, out, others)
        elif head != "**" and matches(name):
            if rest and path.is_dir():
                yield from expand(path, rest, out, others)
            elif not rest and path.is_file() and not (folder == out and _is_own(name)):
                yield path


def _is_own(name: str) -> bool:
    return name.endswith(OWN_SUFFIXES) or name in OWN_NAMES


def _is_glob(argument: str) -> bool:
    return any(sign in argument for sign in GLOB_SIGNS)


def _is_tar(argument: str) -> bool:
    return argument.lower().endswith(TAR_SUFFIXES) and Path(argument).is_file()


def _has_match(pattern: str, out: Path) -> bool:
    return next(expand(*_split_glob(pattern), _normal(out)), None) is not None


def _split_glob(argument: str) -> tuple[Path, tuple[str, ...]]:
    parts = Path(argument).parts
    first = next(i for i, part in enumerate(parts) if _is_glob(part))
    return _normal(Path(*parts[:first])), parts[first:]


def _root(argument: str) -> Path:
    """Return the folder that an input's names are relative to."""
    path = Path(argument)
    if argument == STDIN:
        return Path.cwd()
    if path.is_dir() or _is_tar(argument):
        return _normal(path)
    return _normal(path).parent if os.path.lexists(path) else _split_glob(argument)[0]


def _normal(path: Path) -> Path:
    """Return an absolute path without `..`; do not resolve links, so that names stay as typed."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps `..`


def _below(path: Path, base: Path) -> PurePosixPath:
    inside = path.relative_to(base) if path.is_relative_to(base) else path.relative_to(path.anchor)
    return PurePosixPath(inside.as_posix())


def _name(path: Path, base: Path) -> str:
    """Return a photo's name; the base itself (a broken tar) has its own file name."""
    below = _below(path, base)
    return _printable(below if below.name else path.name or "root")


def _harmless(member: str) -> PurePosixPath:
    """Remove parts of a tar member's name that could lead out of OUT."""
    return PurePosixPath(*(p for p in re.split(r"[\\/]", member) if p not in {"", ".", ".."}))


def _printable(name: str | PurePosixPath) -> str:
    r"""Escape control characters and bytes that are not UTF-8 as `\xNN`."""
    return plain(os.fsencode(str(name)).decode("utf-8", "backslashreplace"))


def _in_sqlite(number: float) -> int:
    """Return a time or size, or 0 if it does not fit into 64 bits: a tar may contain anything."""
    return int(number) if -(2.0**63) < number < 2.0**63 else 0
