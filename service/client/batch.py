"""Run a batch: send every input photo to the service and write the results to OUT.

A thread lists the photos and decides what to do, so that a slow disk or a slow stdin does
not delay answers; its queue is short, so that it does not run far ahead. Requests are
asyncio tasks, as many as the pace allows. A photo's files are written before its row
becomes `done`.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl

import httpx

from service.client import flags, plan
from service.client.errors import (
    BadAnswerError,
    ClientError,
    StatusError,
    UnreachableError,
    UsageError,
)
from service.client.inputs import InputPhoto, Inputs, unreadable
from service.client.manifest import Manifest, PhotoRow
from service.client.outputs import OutsideError, remove_files, write_files
from service.client.pace import Pace
from service.client.plain import counted, parse_json, sentence
from service.client.plan import Decision, Wanted
from service.client.progress import Progress
from service.client.protocol import FILES, Segmentation
from service.client.records import DONE, ClassPixels, Origin
from service.client.retry import RETRYABLE, Outcome
from service.client.transport import AsyncClient
from service.client.uploads import prepare

QUEUE = 4  # photos ahead of the requests; photos of a tar are held in memory there

UNSHRUNK_SHOWN = 5  # further ones are only counted

PHOTO_REFUSALS = frozenset({400, 413, 415, 422})  # about the photo; other 4xx concern all requests
CALLER_REFUSALS = frozenset({401, 402, 403, 404, 405, 406, 407})  # the same for every photo,
CALLER_CODES = frozenset({"invalid-request"})  # like this code of 400: about options, not photos
# Beginning and part of the service's messages about URLs in place of photos.
ABOUT_A_URL, FETCHES_NONE = "url: ", "fetches no URLs"
# Errors about one file name; any other write error (disk full, ...) would affect the next photo.
NAME_ERRORS = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})


class StoppedError(ClientError):
    """The run stopped early; the next run continues."""


@dataclass(frozen=True)
class Limits:
    """When to stop early."""

    max_failures: int | None = None  # 1: stop at the first failure

    def exceeded_by(self, failures: int) -> bool:
        return self.max_failures is not None and failures >= self.max_failures


@dataclass(frozen=True)
class Work:
    """A photo to send, and the stem of its files."""

    photo: InputPhoto
    stem: str
    earlier: PhotoRow | None  # the manifest's row before this run

    def kept_outputs(self, origin: Origin) -> dict[str, int]:
        """Return the files of an earlier result that are still valid."""
        row = self.earlier
        if row is None or row.status != DONE:
            return {}
        return row.outputs if row.origin.gives_same_result(origin) else {}


@dataclass
class Batch:
    """A run. Await `run()` once; it raises a ClientError if the run cannot finish."""

    client: AsyncClient
    inputs: Inputs
    out: Path
    wanted: Wanted
    manifest: Manifest
    pace: Pace
    progress: Progress
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.counts = self.progress.counts
        self._rejected_before = 0
        self._queue: asyncio.Queue[Work | BaseException | None] = asyncio.Queue(QUEUE)
        self._slot_freed = asyncio.Event()
        self._in_flight = 0
        self._is_over = threading.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        feeder = threading.Thread(target=self._feed, args=(loop,), daemon=True)
        feeder.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                while (work := await self._next()) is not None:
                    await self._slot()
                    tasks.create_task(self._settle(work))
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            self._is_over.set()
            while not self._queue.empty():  # let a waiting feeder finish
                self._queue.get_nowait()

    # The feeder's thread

    def _feed(self, loop: asyncio.AbstractEventLoop) -> None:
        end: BaseException | None = None
        try:
            for photo in self.inputs:
                work = self._decide(photo)
                if self._is_over.is_set():
                    return
                if work is not None:
                    asyncio.run_coroutine_threadsafe(self._queue.put(work), loop).result()
        except Exception as error:  # passed to `run`, which raises it
            end = error
        if not self._is_over.is_set():
            asyncio.run_coroutine_threadsafe(self._queue.put(end), loop)

    def _decide(self, photo: InputPhoto) -> Work | None:
        decision = plan.decide(photo, self.wanted, self.manifest, self.out)
        match decision:
            case Decision.SKIP:
                self.manifest.see(photo.name)
                self.counts.skipped += 1
            case Decision.REJECTED:
                self.manifest.see(photo.name)
                self._rejected_before += 1
                self.counts.rejected += 1
            case Decision.REPEAT:
                self.counts.repeated += 1
            case Decision.CLASH:
                photo = replace(photo, name=photo.source, read=_clash(photo), fleeting=False)
        if decision in {Decision.SEND, Decision.CLASH}:
            return self._claim(photo)
        self.progress.update()
        return None

    def _claim(self, photo: InputPhoto) -> Work:
        row = self.manifest.get(photo.name)
        stem = self.manifest.claim(photo.name, photo.source, plan.stems(photo.name))
        return Work(_kept(photo), stem, row)

    # The event loop's side

    async def _next(self) -> Work | None:
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    async def _slot(self) -> None:
        while self._in_flight >= self.pace.limit:
            self._slot_freed.clear()
            await self._slot_freed.wait()
        self._in_flight += 1

    async def _settle(self, work: Work) -> None:
        try:
            await self._send(work)
        except StatusError as error:
            if _is_about_the_url(error, work.photo):
                self._record_failure(work, str(error), request_id=error.request_id)
                return
            if error.code in CALLER_CODES and not self.counts.sent:
                hint = flags.correction(self.wanted.options, error.detail)
                raise UsageError(
                    f"the service refuses the options: {error.detail}: {hint}"
                ) from error
            if _is_about_the_caller(error) or await self._is_gone(error):
                raise
            is_rejected = error.status in PHOTO_REFUSALS
            self._record_failure(work, str(error), is_rejected, error.request_id)
        except UnreachableError as error:
            if await self._is_gone(error):
                raise
            self._record_failure(work, str(error))
        except (BadAnswerError, OutsideError, OSError) as error:
            self._record_failure(work, str(error))
        finally:
            self._in_flight -= 1
            self._slot_freed.set()
            self.pace.answered(asyncio.get_running_loop().time())
        self.progress.update()
        failures = self.counts.rejected + self.counts.failed - self._rejected_before
        if self.limits.exceeded_by(failures):
            raise StoppedError(f"stopped after {counted(failures, 'failure')}")

    async def _is_gone(self, error: StatusError | UnreachableError) -> bool:
        """After the last try: return whether the service is down, or only this photo fails."""
        if isinstance(error, StatusError) and error.status not in RETRYABLE:
            return False
        return not await self.client.ready()

    async def _send(self, work: Work) -> None:
        answer, sha256 = await self._answer(work.photo)
        files, pixels = _sort(answer, self.wanted)
        try:
            written = await asyncio.to_thread(write_files, self.out, work.stem, files)
        except OSError as error:
            if error.errno in NAME_ERRORS:
                raise
            raise StoppedError(f"cannot write below {self.out}: {error}") from error
        origin = self._origin(work.photo, sha256, answer.digest or self.wanted.model_digest)
        outputs = work.kept_outputs(origin) | written
        if work.earlier is not None:
            remove_files(self.out, work.earlier.outputs.keys() - outputs.keys())
        self.manifest.finish(work.photo.name, origin, outputs, pixels, answer.request_id)
        self.counts.sent += 1

    async def _answer(self, photo: InputPhoto) -> tuple[Segmentation, str | None]:
        """Return the answer for a photo, and the digest of the photo if it was read here."""
        wanted = self.wanted
        output, options = ",".join(wanted.asked()), dict(parse_qsl(wanted.options))
        if photo.url is not None:
            if wanted.max_side is not None:
                self._tell_unshrunk(photo, "the service fetches it")
            return await self.client.segment_url(photo.url, output, wanted.model, options), None
        upload = await asyncio.to_thread(prepare, photo, wanted.max_side)
        self._tell_unshrunk(photo, upload.unshrunk)
        answer = await self.client.segment(upload.body, output, wanted.model, options)
        return answer, upload.sha256

    def _tell_unshrunk(self, photo: InputPhoto, reason: str | None) -> None:
        if reason is None:
            return
        self.counts.unshrunk += 1
        if self.counts.unshrunk <= UNSHRUNK_SHOWN:
            self.progress.note(f"{photo.name}: sent unshrunk: {reason}")

    def _record_failure(
        self, work: Work, reason: str, is_rejected: bool = False, request_id: str | None = None
    ) -> None:
        if work.earlier is not None:
            with suppress(OutsideError):  # this may be the reason
                remove_files(self.out, work.earlier.outputs)
        origin = self._origin(work.photo, None, self.wanted.model_digest)
        reason = sentence(reason)
        self.manifest.fail(
            work.photo.name, origin, reason, rejected=is_rejected, request_id=request_id
        )
        if is_rejected:
            self.counts.rejected += 1
        else:
            self.counts.failed += 1
        self.progress.note(f"{work.photo.name}: {reason}")

    def _origin(self, photo: InputPhoto, sha256: str | None, digest: str | None) -> Origin:
        wanted = self.wanted
        return Origin(
            photo.size,
            photo.mtime_ns,
            sha256,
            wanted.model,
            digest,
            wanted.max_side,
            wanted.options,
        )


def on_retry(pace: Pace) -> Callable[[Outcome], None]:
    """Report every 503 for a photo to the pace, but not those while the service starts."""

    def heard(outcome: Outcome) -> None:
        is_503 = isinstance(outcome, httpx.Response) and outcome.status_code == 503
        if is_503 and outcome.request.method == "POST":
            pace.throttled()

    return heard


def class_pixels(result: bytes) -> tuple[ClassPixels, ...]:
    """Read the counts from a `json` output; raises BadAnswerError without them."""
    try:
        classes = tuple(map(ClassPixels.parse, parse_json(result)["classes"]))
        if len({each.class_id for each in classes}) != len(classes):
            raise ValueError("a class comes twice")
        return classes
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadAnswerError(f"output=json has no class pixels: {sentence(error)}") from error


def _is_about_the_url(error: StatusError, photo: InputPhoto) -> bool:
    """Return whether only this URL fails: later, or for another host, it may work.

    Raises UsageError if the service fetches none.
    """
    if photo.url is None or error.code not in CALLER_CODES:
        return False
    if FETCHES_NONE in error.detail:
        raise UsageError(f"{error.detail} (with --local: set DEEPLAB_ALLOW_URL_HOSTS)") from error
    return error.detail.startswith(ABOUT_A_URL)


def _is_about_the_caller(error: StatusError) -> bool:
    return error.status in CALLER_REFUSALS or error.code in CALLER_CODES


def _sort(
    answer: Segmentation, wanted: Wanted
) -> tuple[dict[str, bytes], tuple[ClassPixels, ...] | None]:
    """Return the files to keep, and the class pixels if there is a `json` output."""
    files = answer.files()
    pixels: tuple[ClassPixels, ...] | None = None
    if "json" in answer.outputs:
        pixels = class_pixels(files[FILES["json"]])
        if "json" not in wanted.outputs:
            del files[FILES["json"]]
    return files, pixels


def _kept(photo: InputPhoto) -> InputPhoto:
    """Read a photo now if it cannot be read later."""
    if photo.fleeting:
        try:
            photo.read()
        except OSError as error:
            return replace(photo, read=unreadable(str(error)))
    return photo


def _clash(photo: InputPhoto) -> Callable[[], bytes]:
    return unreadable(
        f"another photo of this run is named {photo.name}: set --base to a common folder"
    )


def _first(group: BaseExceptionGroup) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
