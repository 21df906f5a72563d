"""One request from bytes to bytes: decode, fit or cut, queue, restore, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import (
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    NotAcceptable,
    ServiceError,
)
from service.http import packing
from service.http.middleware.limits import Admission, Claim
from service.http.packing import Outcome, Packing
from service.http.upload import Upload
from service.images import imaging, outputs, windows
from service.images.imaging import Fitted, Opened, Photo
from service.images.outputs import NEEDS_PHOTO, Result, Wish, wants_confidence
from service.images.png import Rows
from service.images.windows import Sliding, Window
from service.inference.contract import Contract
from service.inference.engine import Prediction
from service.inference.models import ServedModel

Encoded = TypeVar("Encoded")
Done = TypeVar("Done")

# What is wrong with one photo of several, and leaves the others their masks.
OF_ONE_PHOTO = (InvalidImage, ImageTooLarge, InferenceFailed)

# Hears of every stage: its name, its seconds, and how many seconds ago it ended.
OnStage = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Resources:
    """What requests share."""

    admission: Admission
    pool: ThreadPoolExecutor  # decodes and encodes
    max_pixels: int
    on_stage: OnStage
    on_pixels: Callable[[int], None]  # hears the size of every admitted photo
    on_problem: Callable[[str], None]  # hears the code of each photo that failed among others


@dataclass
class Stages:
    """Seconds spent by stage, for Server-Timing; of several photos the longest."""

    observe: OnStage
    seconds: dict[str, float] = field(default_factory=dict)

    def record(self, name: str, seconds: float, *, ended_ago_s: float = 0.0) -> None:
        """Note what a stage took."""
        self.seconds[name] = max(seconds, self.seconds.get(name, 0.0))
        self.observe(name, seconds, ended_ago_s)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Time a stage, if it succeeds."""
        began = time.monotonic()
        yield
        self.record(name, time.monotonic() - began)

    def header(self) -> str:
        """As Server-Timing writes it, in milliseconds."""
        return ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in self.seconds.items())


@dataclass(frozen=True)
class Answer:
    """The encoded result."""

    body: bytes
    media_type: str
    stages: Stages


@dataclass(frozen=True)
class Job:
    """What all photos of one request have in common."""

    model: ServedModel
    wish: Wish
    accept: str  # the header, or nothing
    resources: Resources
    deadline: float  # of the monotonic clock: work that waits until then is dropped
    sliding: Sliding | None = None  # None: a larger photo is shrunk

    @cached_property
    def stages(self) -> Stages:
        """Where the time went."""
        return Stages(self.resources.on_stage)

    @property
    def contract(self) -> Contract:
        """What the model says of itself."""
        return self.model.engine.contract


@dataclass(frozen=True)
class Prepared:
    """A decoded photo and what of it goes through the model."""

    photo: Photo
    inputs: Fitted | list[Window]  # shrunk to fit, or in pieces

    @property
    def pixels(self) -> list[NDArray[np.uint8]]:
        """The model's inputs, each (H, W, 3)."""
        if isinstance(self.inputs, Fitted):
            return [self.inputs.pixels]
        return [window.pixels for window in self.inputs]

    def restore(self, maps: list[NDArray[np.uint8]]) -> Rows:
        """The model's answers (H, W) as one map of the photo's own size."""
        if isinstance(self.inputs, Fitted):
            return imaging.restore(maps[0], self.inputs, self.photo.size)
        return Rows.of(windows.merge(maps, self.inputs, self.photo.size))


async def segment(uploads: Sequence[Upload], job: Job) -> Answer:
    """Segment the encoded images of a request; raises ServiceError subclasses."""
    if len(uploads) > 1:
        job = replace(job, wish=packing.wish_for_each(job.wish))
        return await _segment_several(uploads, job, packing.packing_for(job.accept))
    if not job.wish.outputs:
        raise NotAcceptable(f"Accept: {job.accept}: one photo is not packed; name an output")
    return await _segment_one(uploads[0].data, job)


async def _segment_one(data: bytes, job: Job) -> Answer:
    began = time.monotonic()
    opened = await _open(data, job)
    with job.resources.admission.claim(_memory(opened, job)) as claim:
        body, media_type = await _segmented(opened, claim, job, outputs.encode, began)
    return Answer(body, media_type, job.stages)


async def _segment_several(uploads: Sequence[Upload], job: Job, how: Packing) -> Answer:
    """Segment several images at once, so that they share batches.

    A photo that is at fault itself has its problem in the answer; whatever concerns
    the whole request is raised, and drops all of its photos.
    """
    began = time.monotonic()
    opening = (_or_problem(_open(upload.data, job), job) for upload in uploads)
    opened = await asyncio.gather(*opening)
    pixels = sum(_memory(each, job) for each in opened if isinstance(each, Opened))
    limit = job.resources.admission.max_pixels
    if pixels > limit:
        raise ImageTooLarge(f"{pixels} pixels in one request, the limit is {limit}: send fewer")
    with job.resources.admission.claim(pixels) as claim:
        work = [_outcome(*pair, claim, job, began) for pair in zip(uploads, opened, strict=True)]
        outcomes = await _all(work)
        pack = partial(packing.pack, outcomes, job.wish, how)
        body, kind = await claim.work(job.resources.pool, pack)
    return Answer(body, kind, job.stages)


async def _all(work: Sequence[Coroutine[Any, Any, Done]]) -> list[Done]:
    """Wait for all; the first failure cancels the others, and is raised as it is."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _or_problem(work: Coroutine[Any, Any, Done], job: Job) -> Done | ServiceError:
    """The result, or what is wrong with this one photo."""
    try:
        return await work
    except OF_ONE_PHOTO as error:
        job.resources.on_problem(error.code)
        return error


async def _outcome(
    upload: Upload, opened: Opened | ServiceError, claim: Claim, job: Job, began: float
) -> Outcome:
    if isinstance(opened, ServiceError):
        return Outcome(upload.name, error=opened)
    encode = partial(_encode_outcome, upload.name)
    made = await _or_problem(_segmented(opened, claim, job, encode, began), job)
    return Outcome(upload.name, error=made) if isinstance(made, ServiceError) else made


def _encode_outcome(name: str, result: Result, wish: Wish) -> Outcome:
    return Outcome(name, result.photo.size, outputs.encode_each(result, wish))


async def _open(data: bytes, job: Job) -> Opened:
    """Read the header, and refuse by it what would be too much work."""
    opening = partial(imaging.open_checked, data, job.resources.max_pixels)
    opened = await asyncio.get_running_loop().run_in_executor(job.resources.pool, opening)
    if job.sliding:
        fewest = min(_sizes(opened), key=lambda size: _windows(size, job))
        windows.check(fewest, job.contract.input, job.sliding)
    return opened


def _memory(opened: Opened, job: Job) -> int:
    """The pixels that are to be held: the photo's, and those of its windows' answers."""
    pieces = max(_windows(size, job) for size in _sizes(opened))
    height, width = job.model.engine.input_size
    return opened.pixels + (pieces * height * width if pieces > 1 else 0)


def _sizes(opened: Opened) -> tuple[tuple[int, int], tuple[int, int]]:
    """(W, H) of the photo, whichever way it will be turned: some headers do not say."""
    return opened.size, opened.size[::-1]


def _windows(size: tuple[int, int], job: Job) -> int:
    if job.sliding is None:
        return 1
    return windows.count(size, job.contract.input, job.sliding.overlap)


async def _segmented(
    opened: Opened,
    claim: Claim,
    job: Job,
    encode: Callable[[Result, Wish], Encoded],
    began: float,
) -> Encoded:
    """Segment an opened image whose memory is claimed; `began`: when decoding did."""
    pool, stages = job.resources.pool, job.stages
    job.resources.on_pixels(opened.pixels)
    prepared = await claim.work(pool, partial(_prepare, opened, job))
    stages.record("decode", time.monotonic() - began)
    predictions = await _infer(prepared, job)
    with stages.measured("encode"):
        finish = partial(_finish, prepared, predictions, job, encode)
        return await claim.work(pool, finish)


def _prepare(opened: Opened, job: Job) -> Prepared:
    target = job.contract.input
    photo = imaging.decode(
        opened,
        reduce_to=None if job.sliding else max(target.height, target.width),
        whole=not NEEDS_PHOTO.isdisjoint(job.wish.all_outputs),
    )
    if job.sliding and windows.needed(photo.size, target):
        windows.check(photo.size, target, job.sliding)
        return Prepared(photo, windows.cut(photo, target, job.sliding.overlap))
    return Prepared(photo, imaging.fit(photo, target))


async def _infer(prepared: Prepared, job: Job) -> list[Prediction]:
    """Have all inputs of a photo worked on; if one fails the others are dropped."""
    began = time.monotonic()
    batcher = job.model.batcher
    sure = wants_confidence(job.wish, job.contract)
    submitted = [batcher.submit(each, sure, deadline=job.deadline) for each in prepared.pixels]
    answers = await _all(submitted)
    timings = [timing for _, timing in answers]
    queued = min(timing.queued_s for timing in timings)
    ran = timings[0].ran_s if len(timings) == 1 else time.monotonic() - began - queued
    job.stages.record("queue", queued, ended_ago_s=ran)
    job.stages.record("infer", ran)
    return [prediction for prediction, _ in answers]


def _finish(
    prepared: Prepared,
    predictions: list[Prediction],
    job: Job,
    encode: Callable[[Result, Wish], Encoded],
) -> Encoded:
    labels = prepared.restore([each.labels for each in predictions])
    sure = [each.confidence for each in predictions if each.confidence is not None]
    confidence = prepared.restore(sure) if sure else None
    return encode(Result(prepared.photo, labels, confidence, job.contract), job.wish)
