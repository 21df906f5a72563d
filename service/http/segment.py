"""Process a request: decode, fit or cut into windows, infer, restore the size, encode."""

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

from postprocess.grid import Grid
from postprocess.runs import Spread
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
from service.images.imaging import DecodedPhoto, Fitted, Opened
from service.images.outputs import NEEDS_PHOTO, Result, Wish
from service.images.windows import Sliding, Window
from service.inference.contract import Contract
from service.inference.engine import Prediction
from service.inference.models import ServedModel

Encoded = TypeVar("Encoded")
Done = TypeVar("Done")

# Errors of one photo, which do not affect the other photos of the request.
OF_ONE_PHOTO = (InvalidImage, ImageTooLarge, InferenceFailed)

# Called after every stage with its name, its seconds, and the seconds since it ended.
OnStage = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Resources:
    """Resources that all requests share."""

    admission: Admission
    pool: ThreadPoolExecutor  # decodes and encodes
    max_pixels: int
    on_stage: OnStage
    on_pixels: Callable[[int], None]  # called with the pixels of every admitted photo
    on_problem: Callable[[str], None]  # called with the code of each photo that fails among several


@dataclass
class Stages:
    """The seconds of each stage, for Server-Timing; for several photos the longest."""

    observe: OnStage
    seconds: dict[str, float] = field(default_factory=dict)

    def record(self, name: str, seconds: float, *, ended_ago_s: float = 0.0) -> None:
        """Record the duration of a stage."""
        self.seconds[name] = max(seconds, self.seconds.get(name, 0.0))
        self.observe(name, seconds, ended_ago_s)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Record the duration of the block, unless it fails."""
        began = time.monotonic()
        yield
        self.record(name, time.monotonic() - began)

    def header(self) -> str:
        """Format the Server-Timing header, in milliseconds."""
        return ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in self.seconds.items())


@dataclass(frozen=True)
class Answer:
    """The encoded answer."""

    body: bytes
    media_type: str
    stages: Stages


@dataclass(frozen=True)
class Job:
    """The settings and resources that all photos of a request share."""

    model: ServedModel
    wish: Wish
    accept: str  # the Accept header, or empty
    resources: Resources
    deadline: float  # on the monotonic clock; work still waiting then is dropped
    sliding: Sliding | None = None  # None: larger photos are shrunk

    @cached_property
    def stages(self) -> Stages:
        """The durations of the stages."""
        return Stages(self.resources.on_stage)

    @property
    def contract(self) -> Contract:
        """The model's contract."""
        return self.model.engine.contract


@dataclass(frozen=True)
class Prepared:
    """A decoded photo and the model inputs made from it."""

    photo: DecodedPhoto
    inputs: Fitted | list[Window]  # shrunk to fit, or cut into windows

    @property
    def pixels(self) -> list[NDArray[np.uint8]]:
        """The model inputs, each (H, W, 3)."""
        if isinstance(self.inputs, Fitted):
            return [self.inputs.pixels]
        return [window.pixels for window in self.inputs]

    def result(self, predictions: Sequence[Prediction], contract: Contract) -> Result:
        """Join what the model gave for the inputs to the result of the photo."""
        labels = self._joined([each.labels for each in predictions])
        sure = [each.confidence for each in predictions if each.confidence is not None]
        confidence = self._joined(sure) if sure else None
        if not isinstance(self.inputs, Fitted):
            return Result(self.photo, labels, confidence, Spread.none(labels.shape), contract)
        spread = imaging.spread(self.inputs, self.photo.size)
        grid = self._grid(self.inputs, predictions[0], contract)
        return Result(self.photo, labels, confidence, spread, contract, grid)

    def _grid(self, fitted: Fitted, prediction: Prediction, contract: Contract) -> Grid | None:
        values, placing = prediction.probabilities, contract.probability_grid
        if values is None or placing is None:
            return None
        size = contract.input.height, contract.input.width
        return Grid.of(values, placing, size, fitted.valid, self.photo.size)

    def _joined(self, maps: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Join maps (H, W) of the model to a map of the photo."""
        if isinstance(self.inputs, Fitted):
            h, w = self.inputs.valid
            return maps[0][:h, :w]
        return windows.merge(maps, self.inputs, self.photo.size)


async def segment(uploads: Sequence[Upload], job: Job) -> Answer:
    """Segment the encoded images of a request; raises ServiceError subclasses."""
    outputs.check_fit(job.wish, windows=job.sliding is not None)
    if len(uploads) > 1:
        job = replace(job, wish=packing.wish_for_each(job.wish))
        return await _segment_several(uploads, job, packing.packing_for(job.accept))
    if not job.wish.outputs:
        raise NotAcceptable(
            f"Accept: {job.accept}: a single photo has no such answer; set `output`"
        )
    return await _segment_one(uploads[0].data, job)


async def _segment_one(data: bytes, job: Job) -> Answer:
    began = time.monotonic()
    opened = await _open(data, job)
    with job.resources.admission.claim(_memory(opened, job)) as claim:
        body, media_type = await _segmented(opened, claim, job, outputs.encode, began)
    return Answer(body, media_type, job.stages)


async def _segment_several(uploads: Sequence[Upload], job: Job, how: Packing) -> Answer:
    """Segment several images concurrently, so that they share batches.

    An error of one photo is reported in the answer. An error of the whole request is
    raised and cancels all of its photos.
    """
    began = time.monotonic()
    opening = (_or_problem(_open(upload.data, job), job) for upload in uploads)
    opened = await asyncio.gather(*opening)
    pixels = sum(_memory(each, job) for each in opened if isinstance(each, Opened))
    limit = job.resources.admission.max_pixels
    if pixels > limit:
        raise ImageTooLarge(
            f"{pixels} pixels in one request, the limit is {limit}: send fewer photos"
        )
    with job.resources.admission.claim(pixels) as claim:
        work = [_outcome(*pair, claim, job, began) for pair in zip(uploads, opened, strict=True)]
        outcomes = await _all(work)
        pack = partial(packing.pack, outcomes, job.wish, how)
        body, kind = await claim.work(job.resources.pool, pack)
    return Answer(body, kind, job.stages)


async def _all(work: Sequence[Coroutine[Any, Any, Done]]) -> list[Done]:
    """Wait for all; the first error cancels the others and is raised unchanged."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _or_problem(work: Coroutine[Any, Any, Done], job: Job) -> Done | ServiceError:
    """Return the result, or the error of this photo."""
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
    """Read the header and refuse images that are too large."""
    opening = partial(imaging.open_checked, data, job.resources.max_pixels)
    opened = await asyncio.get_running_loop().run_in_executor(job.resources.pool, opening)
    if job.sliding:
        fewest = min(_sizes(opened), key=lambda size: _windows(size, job))
        windows.check(fewest, job.contract.input, job.sliding)
    return opened


def _memory(opened: Opened, job: Job) -> int:
    """Return the pixels to reserve: those of the photo, and of the outputs of its windows."""
    pieces = max(_windows(size, job) for size in _sizes(opened))
    height, width = job.model.engine.input_size
    return opened.pixels + (pieces * height * width if pieces > 1 else 0)


def _sizes(opened: Opened) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return both possible sizes (W, H): not all headers tell the orientation."""
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
    """Segment an opened image whose memory is reserved; `began`: when decoding started."""
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
    """Run the model on all inputs of a photo; if one fails, the others are cancelled."""
    began = time.monotonic()
    batcher = job.model.batcher
    extras = outputs.extras(job.wish, job.contract)
    submitted = [batcher.submit(each, extras, deadline=job.deadline) for each in prepared.pixels]
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
    return encode(prepared.result(predictions, job.contract), job.wish)
