"""Build the answer to several photos in one request: a ZIP, or multipart/mixed (RFC 2046).

Both contain the same files: first `results.json` with a status for each photo, then the
outputs, named after the photos. The same photos give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import quote

from postprocess.results import encoders
from postprocess.results.outputs import ZIP, Wish
from service.errors import NotAcceptable, ServiceError
from service.http import problems
from service.http.negotiation import quality

MULTIPART = "multipart/mixed"
RESULTS = "results.json"
LONGEST_STEM = 150  # bytes: file systems allow 255 for the whole name
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')  # in file names of some system, or in headers

Packing = Literal["application/zip", "multipart/mixed"]


@dataclass(frozen=True)
class Outcome:
    """The result of one photo: its outputs, or an error."""

    name: str  # as the client sent it
    size: tuple[int, int] = (0, 0)  # (W, H) of the photo
    files: dict[str, bytes] = field(default_factory=dict)  # by output
    error: ServiceError | None = None
    model: str = ""
    digest: str = ""  # of the model's file, which may be reloaded during a job


def packing_for(accept: str) -> Packing:
    """Choose ZIP or multipart/mixed from Accept; raises NotAcceptable if neither is allowed."""
    zipped, parts = quality(accept, ZIP), quality(accept, MULTIPART)
    if not zipped and not parts:
        raise NotAcceptable(f"Accept: {accept}: several photos come as {ZIP} or {MULTIPART}")
    return "multipart/mixed" if parts > zipped else "application/zip"


def is_packed(accept: str) -> bool:
    """Return whether Accept allows ZIP or multipart/mixed, the forms for several photos."""
    return quality(accept, ZIP) > 0 or quality(accept, MULTIPART) > 0


def wish_for_each(wish: Wish) -> Wish:
    """Return the outputs of each of several photos: by default a mask."""
    return replace(wish, outputs=wish.outputs or ("mask",))


def pack(outcomes: Sequence[Outcome], wish: Wish, packing: Packing) -> tuple[bytes, str]:
    """Return the body of the answer and its media type."""
    names = [
        {output: f"{stem}.{wish.kind(output)[1]}" for output in outcome.files}
        for outcome, stem in zip(outcomes, stems([each.name for each in outcomes]), strict=True)
    ]
    results = [entry(*pair) for pair in zip(outcomes, names, strict=True)]
    files = {RESULTS: (json.dumps({"results": results}).encode(), "application/json")}
    for outcome, named in zip(outcomes, names, strict=True):
        for output, body in outcome.files.items():
            files[named[output]] = (body, wish.kind(output)[0])
    if packing == MULTIPART:
        return _multipart(files)
    return encoders.archive({name: body for name, (body, _) in files.items()}), ZIP


def entry(outcome: Outcome, names: dict[str, str]) -> dict[str, Any]:
    """Return the entry of one photo in results.json."""
    name, error = _readable(outcome.name), outcome.error
    if error is not None:
        return {"file": name, "status": error.status, "problem": problems.fields(error)}
    width, height = outcome.size
    sized = {"file": name, "status": 200, "width": width, "height": height}
    return {**sized, "model": outcome.model, "model_digest": outcome.digest, "outputs": names}


def stems(names: Sequence[str]) -> Iterator[str]:
    """Yield a unique file name without extension for each photo, safe to unpack anywhere.

    `cat.jpg`, `holiday/cat.png` -> `cat`, `cat-2`.
    """
    taken: set[str] = set()
    for name in names:
        stem = candidate = _stem(name)
        number = 2
        while candidate.casefold() in taken:  # some file systems ignore case
            candidate = f"{stem}-{number}"
            number += 1
        taken.add(candidate.casefold())
        yield candidate


def _stem(name: str) -> str:
    last = re.split(r"[/\\]", _readable(name))[-1]
    stem = UNSAFE.sub("_", last.rpartition(".")[0] or last).strip(". ")
    return stem.encode()[:LONGEST_STEM].decode(errors="ignore") or "photo"


def _readable(name: str) -> str:
    """Replace characters of a name that UTF-8 cannot encode."""
    return name.encode("utf-8", "replace").decode()


def _multipart(files: dict[str, tuple[bytes, str]]) -> tuple[bytes, str]:
    # A SHA-256 of the content will not occur inside the content.
    digest = hashlib.sha256()
    for name, (body, _) in files.items():
        digest.update(f"{name}:{len(body)}:".encode() + body)
    boundary = digest.hexdigest()
    parts = []
    for name, (body, kind) in files.items():
        # RFC 6266: filename* is for non-ASCII names. Give one form only: clients differ on both.
        called = f'="{name}"' if name.isascii() else f"*=UTF-8''{quote(name, safe='')}"
        head = (
            f"--{boundary}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"Content-Disposition: attachment; filename{called}\r\n\r\n"
        )
        parts += [head.encode(), body, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"{MULTIPART}; boundary={boundary}"
