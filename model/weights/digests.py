"""Check that a file is the published one, by a pinned digest or by that of the first download.

Where no digest is known, the first download is trusted. Once its network has passed the
self-check, its SHA-256 is written beside it as `FILE.sha256`, as sha256sum does. Later
files are compared with that.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from model import files
from model.weights.catalogue import Weights


class DigestError(ValueError):
    """A file is not the published one; the message has both digests."""


def sha256(path: Path) -> str:
    return _digest(path, "sha256")


def check(path: Path, weights: Weights, record: Path) -> str:
    """Check a file and describe the comparison; `record` is FILE.sha256, if no digest is pinned.

    Raises DigestError for another file.
    """
    size = path.stat().st_size
    if weights.exact_size and size != weights.size:
        raise DigestError(
            f"{path} has {size} bytes, the published file {weights.size}: it is cut off, or another"
        )
    if weights.digest is not None:
        return _pinned(path, weights)
    found = sha256(path)
    if record.exists():
        _require(path, found, _recorded(record), f"recorded at the first download ({record})")
        return f"SHA-256 {found}: as recorded at the first download ({record})"
    return f"SHA-256 {found}: none is known for this file, so this first one is trusted"


def keep(path: Path, weights: Weights, record: Path) -> None:
    """Write the digest of a first download, for `check` to compare later ones with."""
    record.parent.mkdir(parents=True, exist_ok=True)
    files.write({record: f"{sha256(path)}  {weights.file_name}\n".encode()})


def _pinned(path: Path, weights: Weights) -> str:
    assert weights.digest is not None
    algorithm, digits = weights.digest
    found = _digest(path, algorithm)
    name = algorithm.upper().replace("SHA", "SHA-")
    _require(path, found[: len(digits)], digits, f"pinned ({name})")
    whole = len(found) == len(digits)
    part = "" if whole else f"; of it the first {len(digits)} digits are known"
    return f"{name} {found}: as pinned{part}"


def _require(path: Path, found: str, expected: str, where: str) -> None:
    if found != expected:
        raise DigestError(
            f"{path} is not the file it should be: its digest is {found}, {expected} is {where}"
        )


def _recorded(record: Path) -> str:
    found = re.match(r"([0-9a-f]{64})\b", record.read_text(encoding="utf-8", errors="replace"))
    if found is None:
        raise DigestError(f"{record} holds no SHA-256: delete it, then the next file is recorded")
    return found[1]


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
