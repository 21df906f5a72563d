"""The paths below /jobs: queue, list, describe and remove jobs, send events and results.

A job is visible to the API key that made it, and to no other.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    InvalidRequest,
    JobNotDone,
    JobsFull,
    Overloaded,
    UnknownJob,
    UnknownModel,
    UnsupportedMedia,
)
from service.http.answers import BINARY
from service.http.bodies import zip_request
from service.http.bodies.urls import Fetcher
from service.http.jobs.runner import Arrival, Jobs
from service.http.jobs.sources import files
from service.http.jobs.store import INPUT, RESULT, Kind, State, StoredJob, Totals
from service.http.middleware.keys import digest_of_key
from service.http.problems import answer, component, documented, http_problem
from service.http.query import SegmentQuery
from service.http.upload import fetched, media_type, refuse_encoding
from service.pydantic_errors import mistakes

PATH = "/jobs"
MOST_UNFINISHED, MOST_KEPT = 1000, 10_000  # jobs
MOST_FOLLOWERS = 100  # clients that read events
MAX_JSON = 4 * 1024 * 1024  # bytes; 10,000 URLs of 400 characters
EVENTS = "text/event-stream"
GONE = "there is no such job of this key: it may have expired"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class JobRequest(BaseModel):
    """Photos of a job that the body only names: URLs, or files in the folder --job-inputs."""

    model_config = ConfigDict(extra="forbid")

    urls: Annotated[
        list[str] | None, Field(description="URLs on hosts that the service allows")
    ] = None
    paths: Annotated[
        list[str] | None, Field(description="files and folders below the folder for jobs")
    ] = None


class JobStatus(BaseModel):
    """The state of a job."""

    id: str
    state: State
    photos: int
    done: Annotated[int, Field(description="finished photos, including failed ones")]
    failed: int
    created: Annotated[float, Field(description="seconds since 1970, as all times")]
    ended: float | None
    expires: Annotated[float | None, Field(description="when the job and its result are removed")]
    error: Annotated[str | None, Field(description="why the job failed as a whole")]


class JobList(BaseModel):
    """The jobs of a key."""

    jobs: list[JobStatus]


BODIES: tuple[type[BaseModel], ...] = (JobRequest,)  # not named by any annotation
# First: a generated client takes the first type it knows.
ZIP_ANSWER = {"application/octet-stream": BINARY, "application/zip": BINARY}
BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": component(JobRequest)},
        zip_request.MEDIA_TYPES[0]: BINARY,
    },
}


class CallersJobs:
    """The jobs as their owners see them: a caller only gets the jobs of its own key."""

    def __init__(self, jobs: Jobs) -> None:
        self._store = jobs.store
        self._ttl_s = jobs.settings.job_ttl_s
        self._has_keys = bool(jobs.settings.api_keys or jobs.settings.admin_keys)

    def owner(self, request: Request) -> str:
        """Return the digest of the caller's key; empty if the service has no keys."""
        return digest_of_key(request.scope) if self._has_keys else ""

    async def find(self, request: Request, name: str) -> StoredJob:
        """Return the caller's job of that name; raises UnknownJob."""
        job = await asyncio.to_thread(self._store.get, name, self.owner(request))
        if job is None or self._is_expired(job):
            raise UnknownJob(GONE)
        return job

    async def all(self, request: Request) -> list[StoredJob]:
        """Return the caller's newest jobs in the order in which they were made."""
        jobs = await asyncio.to_thread(self._store.all, self.owner(request))
        return [job for job in jobs if not self._is_expired(job)]

    def status(self, job: StoredJob) -> JobStatus:
        """Describe a job to its owner."""
        fields = {name: getattr(job, name) for name in JobStatus.model_fields if name != "expires"}
        return JobStatus(**fields, expires=self._expires(job))

    def _expires(self, job: StoredJob) -> float | None:
        return None if job.ended is None else job.ended + self._ttl_s

    def _is_expired(self, job: StoredJob) -> bool:
        """Return whether a job has expired; its files are removed a little later."""
        expires = self._expires(job)
        return expires is not None and time.time() >= expires

    async def events(self, changes: AsyncIterator[StoredJob | None]) -> AsyncIterator[str]:
        """Yield server-sent events of a job's changes; None: nothing has changed for a while."""
        async for job in changes:
            if job is None:
                yield ": no change\n\n"
            else:
                yield f"event: progress\ndata: {self.status(job).model_dump_json()}\n\n"


def add_routes(app: FastAPI, jobs: Jobs) -> None:
    """Serve the paths below /jobs."""
    callers = CallersJobs(jobs)
    _add_queue(app, jobs, callers)
    _add_job(app, jobs, callers)
    _add_outcome(app, jobs, callers)


def _add_queue(app: FastAPI, jobs: Jobs, callers: CallersJobs) -> None:
    """Serve /jobs: queue a job, and list those of the caller."""
    store = jobs.store

    @app.post(
        PATH,
        status_code=202,
        openapi_extra={"requestBody": BODY},
        responses=documented(
            *(InvalidRequest, UnknownModel, BodyTimeout, BodyTooLarge, UnsupportedMedia, JobsFull)
        ),
    )
    async def post_job(
        request: Request, response: Response, query: Annotated[SegmentQuery, Query()]
    ) -> JobStatus:
        """Queue many photos: a ZIP, or JSON with URLs or with paths. Options as at /segment."""
        refuse_encoding(request)
        if query.quality is not None:
            raise InvalidRequest(
                "quality=auto: results of a job do not depend on the load: name the model"
            )
        served = jobs.models.get(query.model)
        query.wish(served.engine.contract, "")  # refuse what the model cannot give
        _check_count(store.totals)
        jobs.check_space(_length(request))
        name, folder = await asyncio.to_thread(store.reserve)
        try:
            with jobs.arrival() as arrival:
                kind, photos, size = await _photos(request, jobs, folder, arrival)
                options = query.model_dump_json(exclude_defaults=True)
                add = partial(store.add, query=options, photos=photos, size=size)
                job = await asyncio.to_thread(add, name, callers.owner(request), kind)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        jobs.added()
        response.headers["Location"] = f"{PATH}/{name}"
        return callers.status(job)

    @app.get(PATH)
    async def list_jobs(request: Request) -> JobList:
        """List the newest jobs of the caller's key, at most 1000."""
        return JobList(jobs=[callers.status(job) for job in await callers.all(request)])


def _add_job(app: FastAPI, jobs: Jobs, callers: CallersJobs) -> None:
    """Serve /jobs/NAME: describe a job, and remove it."""

    @app.get(PATH + "/{name}", responses=documented(UnknownJob))
    async def get_job(request: Request, name: str) -> JobStatus:
        """Return the state of a job."""
        return callers.status(await callers.find(request, name))

    @app.delete(PATH + "/{name}", status_code=204, responses=documented(UnknownJob))
    async def delete_job(request: Request, name: str) -> None:
        """Cancel a job and remove it with its result."""
        await jobs.remove(await callers.find(request, name))


def _add_outcome(app: FastAPI, jobs: Jobs, callers: CallersJobs) -> None:
    """Serve the events of a job, and the ZIP of its results."""
    event_stream: dict[int | str, dict[str, Any]] = {
        200: {"content": {EVENTS: {"schema": {"type": "string"}}}}
    }

    @app.get(
        PATH + "/{name}/events",
        response_class=StreamingResponse,
        responses={**event_stream, **documented(UnknownJob, Overloaded)},
    )
    async def get_job_events(request: Request, name: str) -> Response:
        """Send the state of a job at every change until it ends (server-sent events)."""
        job = await callers.find(request, name)
        if request.method == "HEAD":  # there is nothing to wait for
            return Response(media_type=EVENTS)
        if jobs.followers >= MOST_FOLLOWERS:  # each reads the database at every change
            raise Overloaded(f"{MOST_FOLLOWERS} clients read events: ask for {PATH}/{name} instead")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold them
        events = callers.events(jobs.events(job))
        return StreamingResponse(events, media_type=EVENTS, headers=headers)

    results: dict[int | str, dict[str, Any]] = {200: {"content": ZIP_ANSWER}}

    @app.get(
        PATH + "/{name}/result",
        response_class=FileResponse,
        responses={**results, **documented(UnknownJob, JobNotDone)},
    )
    async def get_job_result(request: Request, name: str) -> Response:
        """Send the ZIP of the results: `results.json`, and the outputs of the photos."""
        job = await callers.find(request, name)
        if job.state != "done":
            raise JobNotDone(f"the job is {job.state}: see {PATH}/{name}")
        path = jobs.store.folder / job.id / RESULT
        try:
            found = await asyncio.to_thread(path.stat)
        except OSError:  # it has just been removed
            raise UnknownJob(GONE) from None
        return ResultResponse(
            path, media_type="application/zip", filename=f"{name}.zip", stat_result=found
        )


class ResultResponse(FileResponse):
    """A file, or parts of it; a bad Range is answered with a problem instead of plain text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        refused: list[Message] = []

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in {400, 416}:
                refused.append(message)
            if not refused:
                await send(message)

        await super().__call__(scope, receive, watched)
        if refused:
            content_range = Headers(raw=refused[0]["headers"]).get("content-range")
            await _bad_range(scope, content_range)(scope, receive, send)


def _bad_range(scope: Scope, content_range: str | None) -> Response:
    """Return a problem; `content_range`: `bytes */SIZE` if the result ends before the range."""
    asked = f"Range: {Headers(scope=scope).get('range', '')[:200]!r}"
    if content_range is None:
        return answer(scope, InvalidRequest(f"{asked}: send bytes=FIRST-LAST or bytes=FIRST-"))
    size = content_range.rpartition("/")[2]
    detail = f"{asked}: the result ends before it: it has {size} bytes"
    response = http_problem(scope, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, detail)
    response.headers["Content-Range"] = content_range
    return response


def add_refusals(app: FastAPI) -> None:
    """Answer 404 on every path below /jobs: this service takes no jobs."""

    @app.api_route(PATH, methods=METHODS, include_in_schema=False)
    @app.api_route(PATH + "/{rest:path}", methods=METHODS, include_in_schema=False)
    async def refuse_job() -> Response:
        raise HTTPException(404, "this service takes no jobs: start it with --jobs DIR")


def _length(request: Request) -> int:
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else 0


async def _photos(
    request: Request, jobs: Jobs, folder: Path, arrival: Arrival
) -> tuple[Kind, list[str], int]:
    """Return the kind of source, the photos' names, and the bytes stored in the folder."""
    most = jobs.settings.max_job_photos
    kind = media_type(request)
    if kind in zip_request.MEDIA_TYPES:
        size = await _save(request, arrival, folder / INPUT)
        return "zip", await asyncio.to_thread(_members, folder / INPUT, most), size
    if kind != "application/json":
        raise UnsupportedMedia(
            f"Content-Type {kind or 'is missing'}: send a ZIP as application/zip, or JSON with "
            "`urls` or `paths`"
        )
    asked = await _listed(request)
    if asked.paths:
        root = jobs.settings.job_inputs
        return "paths", await asyncio.to_thread(files, root, asked.paths, most), 0
    urls = asked.urls or []
    if len(urls) > most:
        raise InvalidRequest(f"urls: {len(urls)} of them, the limit of a job is {most}")
    if jobs.fetcher is None:
        await fetched(None, "")  # raises the error that names the missing setting
    else:
        await asyncio.to_thread(_check_urls, jobs.fetcher, urls)  # ten thousand take a second
    return "urls", urls, 0


def _check_urls(fetcher: Fetcher, urls: list[str]) -> None:
    for url in urls:
        fetcher.check(url)


def _check_count(totals: Totals) -> None:
    """Raise JobsFull if there are too many jobs."""
    if totals.unfinished >= MOST_UNFINISHED:
        raise JobsFull(f"{MOST_UNFINISHED} jobs wait or run: try again later")
    if totals.jobs >= MOST_KEPT:
        raise JobsFull(f"{MOST_KEPT} jobs are kept: delete old ones, or wait")


async def _save(request: Request, arrival: Arrival, path: Path) -> int:
    """Write the body to a file as it arrives; raises JobsFull."""
    size = 0
    try:
        with path.open("wb") as file:
            async for piece in request.stream():
                arrival.add(len(piece))
                file.write(piece)
                size += len(piece)
    except OSError as error:
        raise JobsFull(f"the body cannot be stored: {error.strerror}") from None
    return size


def _members(path: Path, most: int) -> list[str]:
    limits = zip_request.Limits(most, bytes=2**62, directory=most * 300 + 65_536)
    with path.open("rb") as file:
        return zip_request.names(file, limits)


async def _listed(request: Request) -> JobRequest:
    parts, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_JSON:
            raise BodyTooLarge(f"the JSON of a job may have {MAX_JSON} bytes: make several jobs")
        parts.append(piece)
    try:
        asked = await asyncio.to_thread(JobRequest.model_validate_json, b"".join(parts))
    except ValidationError as error:
        raise InvalidRequest(mistakes(error.errors(), whole="body", values=False)) from None
    if not (asked.urls or asked.paths) or (asked.urls and asked.paths):
        raise InvalidRequest('send {"urls": [...]} or {"paths": [...]}, one of them and not empty')
    return asked
