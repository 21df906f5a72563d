"""Photos that the service fetches itself: their URLs, and the names of their results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import PurePosixPath
from urllib.parse import unquote

import httpx

URL = re.compile(r"https?://", re.IGNORECASE)
UNUSABLE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|^\.{0,2}$')  # as a name, on Windows too


def is_url(text: str) -> bool:
    """Return whether an input is a URL rather than a path."""
    return URL.match(text) is not None


def lines(listing: Iterable[str]) -> Iterator[str]:
    """Yield the entries of a list: one a line, without empty lines and `#` comments."""
    for line in listing:
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield entry


def name_of(text: str) -> str:
    """Return the path below OUT: `https://example.org:8080/a/b.jpg` -> `example.org_8080/a/b.jpg`.

    A query changes the name to `b~1a2b3c4d.jpg`: it may be long, and it may contain a secret.
    Raises ValueError if it is no URL.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    if not url.host:
        raise ValueError("it has no host")
    place = _usable(url.host) if url.port is None else f"{_usable(url.host)}_{url.port}"
    raw = url.raw_path.partition(b"?")[0].decode("ascii")
    parts = [_usable(part) for part in raw.split("/") if part] or ["index"]
    path = PurePosixPath(place, *parts)
    if not url.query:
        return str(path)
    return str(path.with_name(f"{path.stem}~{sha256(url.query).hexdigest()[:8]}{path.suffix}"))


def _usable(part: str) -> str:
    """Return a part of a URL as the name of a file or folder."""
    name = unquote(part, errors="replace")
    return UNUSABLE.sub("_", name) or "_"
