"""Download a large file, and continue where an interrupted download stopped (RFC 9110, 14)."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.client import archives
from service.client.errors import BadAnswerError, UsageError
from service.client.exchange import SLOWEST_BYTES_PER_S, Ask, Exchange, check_plain, whole
from service.client.retry import Outcome

RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")
MOST_UNPACKED = 20  # times the bytes of the ZIP; the service only stores what is compressed already
MOST_UNTOLD = 1 << 30  # bytes of an answer without a length
PROGRESS = 1 << 20  # bytes: a try that receives as many resets the count of tries
OnBytes = Callable[[int, int | None], None]


@dataclass
class Part:
    """A partly downloaded file. Its name belongs to one result, whose content never changes."""

    path: Path
    total: int | None = None  # bytes of the whole file, once known

    @property
    def size(self) -> int:
        """The number of downloaded bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def is_whole(self) -> bool:
        """Whether the file is complete."""
        return self.total is not None and self.size == self.total


async def to_file(
    exchange: Exchange, ask: Ask, to: Path, part_path: Path, on_bytes: OnBytes | None
) -> Path:
    """Download a ZIP to `part_path`, then rename it to `to`; raises a ClientError or OSError."""
    if os.path.lexists(to):
        raise UsageError(f"{to} exists: name another file, or remove it")
    to.parent.mkdir(parents=True, exist_ok=True)
    part = Part(part_path)
    retries, had = exchange.retries(), part.size
    while (outcome := await _attempt(exchange, ask, part, on_bytes)) is not None:
        outcome = exchange.checked(outcome)
        if part.size >= had + PROGRESS:  # progress: count the tries from here
            retries, had = exchange.retries(), part.size
        if not await exchange.again(retries, outcome):
            exchange.settle(retries, outcome)
    await asyncio.to_thread(_check, part_path)
    try:
        os.link(part_path, to)  # fails if another program has created the file meanwhile
    except FileExistsError:
        raise UsageError(f"{to} exists: name another file, or remove it") from None
    except OSError:  # a file system without links
        part_path.rename(to)
        return to
    part_path.unlink()
    return to


async def _attempt(
    exchange: Exchange, ask: Ask, part: Part, on_bytes: OnBytes | None
) -> Outcome | None:
    """Make one try; return what went wrong, or None when the file is complete."""
    began = part.size
    extra = {"Range": f"bytes={began}-"} if began else {}
    try:
        async with (
            exchange.stream(Ask(ask.method, ask.path, extra=extra)) as answer,
            asyncio.timeout(exchange.timeout_s) as timer,
        ):
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and began:
                return _beyond(answer, part)
            if not answer.is_success:
                return await whole(answer, ask.most_bytes, timer)
            await _receive(answer, part, on_bytes, timer)
    except httpx.RequestError as error:
        return error
    except TimeoutError:
        return httpx.ReadTimeout(f"fewer than {SLOWEST_BYTES_PER_S} bytes came in a second")
    return None if part.total is None or part.is_whole else httpx.ReadError("the answer was cut")


def _beyond(answer: httpx.Response, part: Part) -> Outcome | None:
    """Handle a Range beyond the end: the part is complete, or belongs to another result."""
    found = RANGE.fullmatch(answer.headers.get("content-range", ""))
    part.total = int(found[2]) if found else None
    if part.is_whole:
        return None
    part.path.unlink()
    return httpx.ReadError("the download starts over")


async def _receive(
    answer: httpx.Response, part: Part, on_bytes: OnBytes | None, timer: asyncio.Timeout
) -> None:
    """Append the body to the part, or replace it where the server ignores Range.

    Extends `timer` as bytes arrive. Raises BadAnswerError for more bytes than there is room for.
    """
    check_plain(answer)
    start = 0
    if answer.status_code == httpx.codes.PARTIAL_CONTENT:
        found = RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or found[1] is None or int(found[1]) != part.size:
            raise BadAnswerError("the answer is not the requested range")
        start, part.total = part.size, int(found[2])
    else:
        length = answer.headers.get("content-length", "")
        part.total = int(length) if length.isascii() and length.isdigit() else None
    _check_room(part, start)
    most, told = (MOST_UNTOLD, "allowed") if part.total is None else (part.total, "announced")
    ends = timer.when() or 0.0
    with part.path.open("r+b" if start else "wb") as file:
        file.seek(start)
        async for piece in answer.aiter_raw():
            file.write(piece)
            timer.reschedule(ends + (file.tell() - start) / SLOWEST_BYTES_PER_S)
            if file.tell() > most:
                part.path.unlink()
                raise BadAnswerError(f"the result has more bytes than the {most} {told}")
            if on_bytes is not None:
                on_bytes(file.tell(), part.total)


def _check_room(part: Part, start: int) -> None:
    """Raise BadAnswerError for a result that the disk has no room for."""
    free = shutil.disk_usage(part.path.parent).free
    left = (part.total or 0) - start
    if left > free:
        raise BadAnswerError(f"the result needs {left} more bytes, and the disk has {free} free")


def _check(path: Path) -> None:
    """Raise BadAnswerError and remove the file unless it is a whole ZIP."""
    size = path.stat().st_size
    try:
        with archives.opened(path) as archive:
            if sum(each.file_size for each in archive.infolist()) > MOST_UNPACKED * size:
                raise BadAnswerError("it unpacks to far more bytes than it has")
            if (broken := archive.testzip()) is not None:
                raise BadAnswerError(f"bad checksum of {broken!r}")
    except BadAnswerError as error:
        path.unlink(missing_ok=True)
        raise BadAnswerError(f"the result is not a whole ZIP: {error}") from error
