"""The requests about jobs: submit, get, watch, fetch and cancel."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from service.client import protocol
from service.client.errors import BadAnswerError, StatusError, UnreachableError, UsageError
from service.client.exchange import Ask, Exchange
from service.client.jobs import download, events
from service.client.jobs.job import Job, job_of
from service.client.plain import parse_json, sentence
from service.client.retry import RETRYABLE, is_of_a_proxy

PATH = "/jobs"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # becomes part of a URL and of a file name
POLL_S = 2.0  # between two requests for the state, if no events arrive
MAYBE_QUEUED = "; the job may have been queued: deeplab-client jobs list"
MOST_BYTES_OF_A_LIST = 16 << 20


class Jobs:
    """The jobs of a service."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def submit(
        self,
        params: dict[str, str],
        archive: Path | str | None,
        *,
        urls: Sequence[str],
        paths: Sequence[str],
    ) -> Job:
        """Queue a ZIP, URLs or paths. Tried again only if it cannot have been queued before."""
        if sum(map(bool, (archive, urls, paths))) != 1:
            raise UsageError("a job needs a ZIP file, or URLs, or paths: one of them")
        if archive:
            body: bytes | Path = Path(archive)
            kind = protocol.ZIP
        else:
            listed = {"urls": list(urls)} if urls else {"paths": list(paths)}
            body, kind = json.dumps(listed).encode(), protocol.JSON
        try:
            answer = await self._exchange.send(Ask("POST", PATH, params, body, kind, once=True))
        except UnreachableError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            raise UnreachableError(f"{error}{MAYBE_QUEUED}") from error.__cause__
        except StatusError as error:
            if error.status in RETRYABLE and is_of_a_proxy(error.code):
                raise error.at(MAYBE_QUEUED) from error.__cause__
            raise
        return _parsed(answer)

    async def get(self, name: str) -> Job:
        """Request the state of a job."""
        return _parsed(await self._exchange.send(Ask("GET", _path(name))))

    async def all(self) -> tuple[Job, ...]:
        """Request the jobs of the key, oldest first."""
        ask = Ask("GET", PATH, most_bytes=MOST_BYTES_OF_A_LIST)
        answer = await self._exchange.send(ask)
        try:
            return tuple(job_of(each) for each in parse_json(answer.content)["jobs"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadAnswerError(f"GET {PATH} is not a list of jobs: {sentence(error)}") from error

    async def watch(self, name: str, on_change: Callable[[Job], None] | None = None) -> Job:
        """Wait until a job ends: by its events, or by requests for its state if none arrive."""
        heard: list[Job] = []

        def hear(job: Job) -> None:
            if on_change is not None and heard[-1:] != [job]:
                on_change(job)
            heard[:] = [job]

        comes_through = True
        while True:
            if comes_through:
                comes_through = await events.follow(self._exchange, f"{_path(name)}/events", hear)
            if not (heard and heard[-1].has_ended):
                hear(await self.get(name))
            if heard[-1].has_ended:
                return heard[-1]
            await asyncio.sleep(POLL_S)

    async def fetch(
        self, name: str, to: Path, on_bytes: Callable[[int, int | None], None] | None
    ) -> Path:
        """Download the result of a job to a new file."""
        part = to.with_name(f".{to.name}.{name}.part")
        ask = Ask("GET", f"{_path(name)}/result")
        return await download.to_file(self._exchange, ask, to, part, on_bytes)

    async def cancel(self, name: str) -> None:
        """Remove a job."""
        await self._exchange.send(Ask("DELETE", _path(name)))


def _path(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(f"job {name!r}: the id of a job is what `jobs submit` printed")
    return f"{PATH}/{name}"


def _parsed(answer: httpx.Response) -> Job:
    try:
        found: Any = parse_json(answer.content)
        return job_of(found)
    except (ValueError, KeyError, TypeError) as error:
        raise BadAnswerError(f"the answer is not the state of a job: {sentence(error)}") from error
