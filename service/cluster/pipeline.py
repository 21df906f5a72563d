"""Process many photos with one engine in one process: read, decode, run, encode, write.

A pool of threads reads and decodes ahead of the engine and encodes and writes behind it, a bounded
number of photos at a time. The steps are those of a request to the service, with the same
functions, so that results are byte for byte those of one request.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl

import numpy as np
from pyarrow import fs
from pydantic import ValidationError

from postprocess.results import outputs
from postprocess.results.outputs import NEEDS_PHOTO, Wish
from postprocess.windows import Sliding
from service.client.batch import class_pixels
from service.client.files import check_size, read_photo
from service.client.plain import sentence
from service.client.protocol import FILES
from service.client.records import DONE, FAILED, REJECTED, ClassPixels, Record
from service.client.uploads import UnshrinkableError, shrink
from service.cluster.records import Todo
from service.cluster.storage import Place, StoredPhoto
from service.errors import InvalidRequest, ServiceError
from service.http.query import REPEATABLE, SegmentQuery, bounds
from service.images import imaging, join
from service.images.prepare import Plan, Prepared, prepare
from service.images.refusals import refusals
from service.inference.contract import Contract
from service.inference.engine import Engine, Prediction
from service.pydantic_errors import mistakes
from service.settings import Settings

log = logging.getLogger("service.pipeline")

# Errors about one file name; any other write error (disk full, ...) would affect the next photo.
NAME_ERRORS = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})

Item = TypeVar("Item")
Done = TypeVar("Done")


class OutputError(RuntimeError):
    """OUT cannot be written, so the run must stop."""


@dataclass(frozen=True)
class BatchJob:
    """The settings for all photos. It can be sent to other processes."""

    source: fs.FileSystem
    out: Place
    outputs: tuple[str, ...]
    max_batch: int  # 0: the engine's default
    max_pixels: int
    threads: int  # for reading, decoding, encoding and writing
    max_side: int | None = None
    options: str = ""  # of a request, as a query string
    counts: bool = False  # record class pixels, for the report
    max_windows: int = Settings.model_fields["max_windows"].default

    @property
    def asked(self) -> tuple[str, ...]:
        """Return the outputs to make: class pixels are in `json`."""
        return tuple(dict.fromkeys((*self.outputs, *(("json",) if self.counts else ()))))

    def query(self) -> SegmentQuery:
        """Return the same options as for a request to the service; raises InvalidRequest."""
        given = parse_qsl(self.options, keep_blank_values=True)
        asked = {name: [value] if name in REPEATABLE else value for name, value in given}
        asked["output"] = list(self.asked)
        try:
            return SegmentQuery.model_validate(asked)
        except ValidationError as error:
            found = mistakes(
                error.errors(),
                kind="parameter",
                known=lambda _: SegmentQuery.model_fields,
                bounds=bounds,
            )
            raise InvalidRequest(found) from None

    def sliding(self) -> Sliding | None:
        """Return the options for sliding windows, or None to shrink photos."""
        query = self.query()
        return Sliding(query.overlap, self.max_windows) if query.fit == "sliding" else None


@dataclass(frozen=True)
class Ready:
    """A photo that is ready for the engine."""

    todo: Todo
    sha256: str
    prepared: Prepared


class Pipeline:
    """An engine and its threads. Call `run` from one thread at a time."""

    def __init__(self, load: Callable[[], Engine], job: BatchJob) -> None:
        """`load` creates the engine, and creates it again after it has failed."""
        self._load = load
        self._job = job
        self._engine = load()
        self._max_batch = job.max_batch or self._engine.usual_batch
        self._engine.warm_up(self._max_batch)
        self._wish = wish(job, self._engine.contract)
        self._sliding = job.sliding()
        self._whole = not NEEDS_PHOTO.isdisjoint(self._wish.all_outputs)
        self._pool = ThreadPoolExecutor(job.threads, thread_name_prefix="imaging")

    def run(self, todos: Iterable[Todo]) -> Iterator[Record]:
        """Yield a record for every photo; raises OutputError if OUT cannot be written."""
        limit = self._job.threads + 2 * self._max_batch
        prepared = ahead(self._pool, self._prepare, todos, limit)
        yield from ahead(self._pool, self._finish, self._predicted(prepared), limit)

    def _prepare(self, todo: Todo) -> Ready | Record:
        """Read and decode a photo; return its record if it does not need the engine."""
        try:
            data = self._read(todo.photo)
        except OSError as error:
            return self._without_result(todo, FAILED, str(error), None)
        digest = hashlib.sha256(data).hexdigest()
        if todo.earlier is not None and digest == todo.unchanged_if:
            return replace(todo.earlier, mtime_ns=todo.photo.mtime_ns, source=todo.photo.source)
        try:
            prepared = self._decoded(self._shrunk(data))
        except ServiceError as error:
            return self._without_result(todo, REJECTED, _reason(error), digest)
        return Ready(todo, digest, prepared)

    def _shrunk(self, data: bytes) -> bytes:
        """As the batch client would send it."""
        if self._job.max_side is None:
            return data
        try:
            return shrink(data, self._job.max_side)
        except UnshrinkableError:
            return data

    def _decoded(self, data: bytes) -> Prepared:
        """Prepare a photo for inference as the service does; raises ServiceError."""
        target, smooth = self._engine.contract.input, self._wish.smooth
        opened = imaging.open_checked(data, self._job.max_pixels, target.samples)
        return prepare(opened, Plan(target, self._sliding, self._whole, decoded=smooth))

    def _read(self, photo: StoredPhoto) -> bytes:
        """As the batch client reads: regular files only, and no more than a photo has."""
        check_size(photo.size, photo.source)
        if self._job.source.type_name == "local":
            return read_photo(Path(photo.source))
        with self._job.source.open_input_stream(photo.source) as stream:
            return bytes(stream.read())

    def _predicted(
        self, prepared: Iterable[Ready | Record]
    ) -> Iterator[tuple[Ready, list[Prediction]] | Record]:
        for group in batches(prepared, self._max_batch):
            ready = [each for each in group if isinstance(each, Ready)]
            yield from (each for each in group if isinstance(each, Record))
            if ready:
                yield from self._infer(ready)

    def _infer(self, ready: list[Ready]) -> Iterator[tuple[Ready, list[Prediction]] | Record]:
        try:
            predictions = self._predict(ready)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            # After running out of memory a session may fail for ever: a fresh one, one by one.
            log.warning("the engine failed on %d photos, starting it again: %s", len(ready), error)
            self._engine = self._load()
            yield from map(self._infer_alone, ready)
            return
        yield from zip(ready, predictions, strict=True)

    def _infer_alone(self, each: Ready) -> tuple[Ready, list[Prediction]] | Record:
        try:
            return each, self._predict([each])[0]
        except Exception as error:  # as above
            reason = f"inference failed: {error}"
            return self._without_result(each.todo, FAILED, reason, each.sha256)

    def _predict(self, ready: list[Ready]) -> list[list[Prediction]]:
        """For each photo the predictions of its inputs; a photo cut into windows has several."""
        inputs = [pixels for each in ready for pixels in each.prepared.pixels]
        extras = outputs.extras(self._wish, self._engine.contract)
        answers = (
            answer
            for group in batches(inputs, self._max_batch)
            for answer in self._engine.predict(np.stack(group), extras)
        )
        return [list(itertools.islice(answers, len(each.prepared.pixels))) for each in ready]

    def _finish(self, predicted: tuple[Ready, list[Prediction]] | Record) -> Record:
        """Encode and write the outputs; remove files of an earlier result that this one lacks."""
        if isinstance(predicted, Record):
            return predicted
        each, predictions = predicted
        try:
            files = self._encoded(each, predictions)
        except ServiceError as error:
            return self._without_result(each.todo, REJECTED, _reason(error), each.sha256)
        counted = class_pixels(files[FILES["json"]]) if self._job.counts else None
        if "json" not in self._job.outputs:
            files.pop(FILES["json"], None)
        try:
            written = self._write(each.todo.stem, files)
        except OSError as error:
            if error.errno not in NAME_ERRORS:
                raise OutputError(f"cannot write below {self._job.out.root}: {error}") from error
            return self._without_result(each.todo, FAILED, str(error), each.sha256)
        earlier = self._earlier(each)
        kept = written if earlier is None else earlier.outputs | written
        if counted is None and earlier is not None:
            counted = earlier.classes
        self._remove_others(each.todo, kept)
        return self._record(each.todo, DONE, each.sha256, outputs=kept, classes=counted)

    def _encoded(self, each: Ready, predictions: list[Prediction]) -> dict[str, bytes]:
        result = join.result(each.prepared, predictions, self._engine.contract)
        with refusals():
            encoded = outputs.encode_each(result, self._wish)
        return {self._wish.kind(name)[1]: body for name, body in encoded.items()}

    def _write(self, stem: str, files: dict[str, bytes]) -> dict[str, int]:
        for name, content in files.items():
            self._job.out.write(f"{stem}.{name}", content)
        return {f"{stem}.{name}": len(content) for name, content in files.items()}

    def _earlier(self, each: Ready) -> Record | None:
        """Return the earlier result if it has the same photo, model and options: its files stay."""
        earlier = each.todo.earlier
        now = self._record(each.todo, DONE, each.sha256).origin
        return earlier if earlier is not None and earlier.origin.gives_same_result(now) else None

    def _without_result(self, todo: Todo, status: str, reason: str, sha256: str | None) -> Record:
        self._remove_others(todo, {})
        return self._record(todo, status, sha256, error=reason)

    def _remove_others(self, todo: Todo, kept: dict[str, int]) -> None:
        earlier = {} if todo.earlier is None else todo.earlier.outputs
        for file in earlier.keys() - kept.keys():
            try:
                self._job.out.remove(file)
            except OSError as error:
                raise OutputError(f"cannot remove {file} from OUT: {error}") from error

    def _record(
        self,
        todo: Todo,
        status: str,
        sha256: str | None,
        *,
        error: str | None = None,
        outputs: dict[str, int] | None = None,
        classes: tuple[ClassPixels, ...] | None = None,
    ) -> Record:
        photo, engine = todo.photo, self._engine
        return Record(
            name=photo.name,
            source=photo.source,
            stem=todo.stem,
            size=photo.size,
            mtime_ns=photo.mtime_ns,
            sha256=sha256,
            model=engine.name,
            model_digest=engine.digest,
            max_side=self._job.max_side,
            options=self._job.options,
            status=status,
            error=None if error is None else sentence(error),
            outputs=outputs or {},
            classes=classes,
        )


def _reason(error: ServiceError) -> str:
    """Return the same text as the batch client."""
    return f"{error.status} {error.code}: {error}"


def wish(job: BatchJob, contract: Contract) -> Wish:
    """Return the request as the service would get it; raises InvalidRequest if the model cannot."""
    return job.query().wish(contract, accept="")


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Done], items: Iterable[Item], limit: int
) -> Iterator[Done]:
    """Like `map`, but in threads: results in order, at most `limit` items ahead of the consumer."""
    waiting: deque[Future[Done]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= limit:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size`, the last one shorter."""
    source = iter(items)
    while batch := list(itertools.islice(source, size)):
        yield batch
