"""Work on jobs in the background, photo by photo; other requests take precedence."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from postprocess.results.encoders import EPOCH
from postprocess.results.outputs import Wish
from service.errors import (
    EngineUnavailable,
    InferenceFailed,
    JobsFull,
    Overloaded,
    ServiceError,
    ShuttingDown,
)
from service.http import deadlines, packing
from service.http.bodies.urls import Fetcher
from service.http.jobs.sources import FolderSource, Source, UrlSource, ZipSource
from service.http.jobs.store import INPUT, OUTPUTS, RESULT, Store, StoredJob
from service.http.packing import Outcome
from service.http.query import SegmentQuery
from service.http.segment import Job, Resources, segment_photo
from service.inference.batcher import Share
from service.inference.models import Models
from service.settings import Settings

log = logging.getLogger("service.jobs")
T = TypeVar("T")

JOBS_AT_ONCE, PHOTOS_AT_ONCE = 4, 2  # several jobs: small ones need not wait for large ones
PATIENCE_S = 5.0  # longest wait of a job's photo while few other requests are in progress
SWEEP_S = 30.0
FULL_S = 5.0  # between two attempts to write on a full disk
TRANSIENT = (Overloaded, EngineUnavailable, ShuttingDown)
NEWS_S, NO_NEWS_S = 0.2, 15  # least and most time between two events of a job


class Arrival:
    """The bytes of a job that has not been stored yet."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self.size = 0

    def add(self, size: int) -> None:
        """Count bytes that are about to be written; raises JobsFull."""
        self._jobs.check_space(size)
        self._jobs.arriving += size
        self.size += size


class Jobs:
    """All jobs of the service."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        models: Models,
        resources: Resources,
        fetcher: Fetcher | None,
    ) -> None:
        """Open the folder; raises StartupError."""
        self.store = Store(folder)
        self.settings = settings
        self.models = models
        self.fetcher = fetcher
        self._resources = resources
        self._turns = asyncio.Semaphore(PHOTOS_AT_ONCE)
        self.finished = {"done": 0, "failed": 0}  # photos, since the start
        self.followers = 0  # clients that read events
        self.arriving = 0  # bytes on the disk of jobs that are still being received
        self._taking = asyncio.Lock()  # while a job leaves the queue, or is removed
        self._own = 0  # photos of jobs among the requests in progress
        self._queued = asyncio.Event()
        self._changed = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to work, first on what an earlier process left."""
        self.store.remove_strays()
        self._tasks = [asyncio.create_task(self._begin()), asyncio.create_task(self._sweep())]

    async def _begin(self) -> None:
        await _stored(partial(asyncio.to_thread, self.store.requeue))
        self._queued.set()
        await asyncio.gather(*(self._work() for _ in range(JOBS_AT_ONCE)))

    async def stop(self) -> None:
        """Stop working; unfinished jobs continue after the next start."""
        for task in (*self._tasks, *self._running.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._running.values(), return_exceptions=True)
        self.store.close()

    def added(self) -> None:
        """Notice a job that has been queued."""
        self._queued.set()

    async def remove(self, job: StoredJob) -> None:
        """Cancel a job, if it runs, and forget it."""
        async with self._taking:
            if task := self._running.get(job.id):
                task.cancel()
                await asyncio.wait([task])
            await asyncio.to_thread(self.store.remove, job.id)
        self._tell()

    @contextmanager
    def arrival(self) -> Iterator[Arrival]:
        """Count the bytes of a new job until it is stored, or refused."""
        arrival = Arrival(self)
        try:
            yield arrival
        finally:
            self.arriving -= arrival.size

    async def events(self, job: StoredJob) -> AsyncIterator[StoredJob | None]:
        """Yield the job at every change until it ends; None if nothing changed for a while."""
        self.followers += 1
        try:
            async for each in self._changes(job):
                yield each
        finally:
            self.followers -= 1

    async def _changes(self, job: StoredJob) -> AsyncIterator[StoredJob | None]:
        last: StoredJob | None = None
        while not self.models.draining:
            changed = self._changed
            now = await asyncio.to_thread(self.store.get, job.id)
            if now is None:  # removed
                return
            if now != last:
                yield now
                last = now
            if now.ended is not None:
                return
            await asyncio.sleep(NEWS_S)
            if not await self._has_changed(changed):
                yield None

    async def _has_changed(self, changed: asyncio.Event) -> bool:
        """Wait for a change of any job, for a while and until the service drains."""
        for _ in range(NO_NEWS_S):
            with suppress(TimeoutError):
                return await asyncio.wait_for(changed.wait(), 1)
            if self.models.draining:
                break
        return False

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _work(self) -> None:
        while True:
            self._queued.clear()  # before taking: a job that is added meanwhile sets it again
            job = await _stored(self._started)
            if job is None:
                await self._queued.wait()
                continue
            try:
                await asyncio.wait([self._running[job.id]])
            finally:
                self._running.pop(job.id, None)

    async def _started(self) -> StoredJob | None:
        """Start the oldest queued job; raises JobsFull."""
        async with self._taking:
            job = await asyncio.to_thread(self.store.take)
            if job is not None:
                self._running[job.id] = asyncio.create_task(self._run(job))
        return job

    async def _run(self, job: StoredJob) -> None:
        """Work on a job to its end."""
        self._tell()
        source: Source | None = None
        try:
            source = await asyncio.to_thread(self._source, job)
            stems, pending = await asyncio.to_thread(self._left, job)
            async with asyncio.TaskGroup() as workers:
                for _ in range(PHOTOS_AT_ONCE):
                    workers.create_task(self._photos(job, source, stems, pending))
            size = await asyncio.to_thread(self._pack, job)
            await asyncio.to_thread(self.store.end, job.id, "done", None, size)
            log.info("job %s: done", job.id)
        except Exception as error:
            await self._failed(job, error)
        finally:
            if source is not None:
                source.close()
            self._tell()

    def _left(self, job: StoredJob) -> tuple[list[str], Iterator[tuple[int, str]]]:
        """Return the names of a job's files, and the photos that are not finished."""
        stems = list(packing.stems(self.store.names(job.id)))
        return stems, iter(self.store.pending(job.id))

    async def _failed(self, job: StoredJob, error: Exception) -> None:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        text = error.detail if isinstance(error, ServiceError) else "internal error"
        reason = None if isinstance(error, ServiceError) else error
        log.error("job %s failed: %s", job.id, text, exc_info=reason)
        end = partial(asyncio.to_thread, self.store.end, job.id, "failed", text, 0)
        await _stored(end)

    def _source(self, job: StoredJob) -> Source:
        most = self.settings.max_body_bytes
        if job.kind == "zip":
            return ZipSource(self.store.folder / job.id / INPUT, most)
        if job.kind == "urls":
            return UrlSource(self.fetcher)
        return FolderSource(self.settings.job_inputs, most)

    async def _photos(
        self,
        job: StoredJob,
        source: Source,
        stems: list[str],
        pending: Iterator[tuple[int, str]],
    ) -> None:
        query = SegmentQuery.model_validate_json(job.query)
        for number, name in pending:
            try:
                data = await _persistent(partial(source.read, number, name))
                work = partial(self._segmented, data, query)
                (wish, outcome) = await _persistent(work)
                named = {key: f"{stems[number]}.{wish.kind(key)[1]}" for key in outcome.files}
                size = await asyncio.to_thread(self._write, job, outcome, named)
                entry = packing.entry(replace(outcome, name=name), named)
            except JobsFull:
                raise
            except ServiceError as error:
                entry, size = packing.entry(Outcome(name, error=error), {}), 0
            except Exception:
                log.exception("job %s: %r failed", job.id, name)
                failure = InferenceFailed("internal error: the service's log has the reason")
                entry, size = packing.entry(Outcome(name, error=failure), {}), 0
            await asyncio.to_thread(self.store.note, job.id, number, entry, size)
            self.finished["done" if entry["status"] == 200 else "failed"] += 1
            self._tell()

    async def _segmented(self, data: bytes, query: SegmentQuery) -> tuple[Wish, Outcome]:
        """Segment a photo when other requests leave room for it."""
        async with self._turns:
            await self._until_free()
            self._own += 1
            try:
                return await self._segmented_now(data, query)
            finally:
                self._own -= 1

    async def _until_free(self) -> None:
        """Wait for other requests: up to PATIENCE_S, or longer if they take half of all slots."""
        admission = self._resources.admission
        until = time.monotonic() + PATIENCE_S
        while admission.requests > (
            self._own if time.monotonic() < until else admission.max_requests // 2
        ):
            await asyncio.sleep(0.02)

    async def _segmented_now(self, data: bytes, query: SegmentQuery) -> tuple[Wish, Outcome]:
        resources, settings = self._resources, self.settings
        async with deadlines.enforced(settings.request_timeout_ms) as deadline:
            served = self.models.get(query.model)
            with (
                served.used(),
                resources.admission.held(len(data)),
                resources.admission.request(),
            ):
                wish = packing.wish_for_each(query.wish(served.engine.contract, ""))
                share = Share(several=True)  # photos of a job yield to single ones
                sliding = query.sliding(settings)
                asked = Job(served, wish, "", resources, deadline, sliding, share=share)
                files, size = await segment_photo(data, asked)
            made = Outcome("", size, files, model=served.name, digest=served.engine.digest)
        return wish, made

    def _write(self, job: StoredJob, outcome: Outcome, named: dict[str, str]) -> int:
        """Write the outputs of a photo; return the bytes they will take. Raises JobsFull.

        They count twice: at the end the disk briefly holds both the files and the ZIP of the
        result.
        """
        size = 2 * sum(map(len, outcome.files.values()))
        self.check_space(size)
        try:
            for output, content in outcome.files.items():
                (self.store.folder / job.id / OUTPUTS / named[output]).write_bytes(content)
        except OSError as error:
            raise JobsFull(f"the outputs cannot be written: {error.strerror}") from None
        return size

    def check_space(self, size: int) -> None:
        """Raise JobsFull if so many bytes more would exceed the limit of all jobs."""
        limit = self.settings.max_jobs_bytes
        if self.store.totals.bytes + self.arriving + size > limit:
            raise JobsFull(f"the jobs have {limit} bytes, their limit: delete old ones, or wait")

    def _pack(self, job: StoredJob) -> int:
        """Write the ZIP of the results; return its bytes. Raises JobsFull."""
        folder = self.store.folder / job.id
        part = folder / (RESULT + ".part")
        entries = self.store.entries(job.id)
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr(
                    zipfile.ZipInfo(packing.RESULTS, EPOCH), json.dumps({"results": entries})
                )
                for name in (
                    each for entry in entries for each in entry.get("outputs", {}).values()
                ):
                    info = zipfile.ZipInfo(name, EPOCH)
                    with (
                        archive.open(info, "w") as to,
                        (folder / OUTPUTS / name).open("rb") as file,
                    ):
                        shutil.copyfileobj(file, to)
            part.rename(folder / RESULT)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise JobsFull(f"the result cannot be written: {error.strerror}") from None
        return (folder / RESULT).stat().st_size

    async def _sweep(self) -> None:
        """Remove jobs whose time is over."""
        while True:
            before = time.time() - self.settings.job_ttl_s
            for name in await asyncio.to_thread(self.store.expired, before):
                with suppress(OSError, JobsFull):  # the next sweep tries again
                    await asyncio.to_thread(self.store.remove, name)
            await asyncio.sleep(SWEEP_S)


async def _stored(write: Callable[[], Awaitable[T]]) -> T:
    """Call `write` until the disk has room for it."""
    while True:
        try:
            return await write()
        except JobsFull as error:
            log.error("%s: free space on the disk of --jobs", error.detail)
            await asyncio.sleep(FULL_S)


async def _persistent(work: Any) -> Any:
    """Call `work` until the service is not overloaded."""
    while True:
        try:
            return await work()
        except TRANSIENT as error:
            await asyncio.sleep(error.retry_after_s or 1)
