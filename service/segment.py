"""One request from bytes to bytes: decode, fit, queue, restore, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

from PIL.Image import Image

from service import imaging, outputs, packing
from service.contract import Contract
from service.engine import Prediction
from service.errors import (
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    NotAcceptable,
    ServiceError,
)
from service.imaging import Fitted, Photo
from service.limits import Admission, Claim
from service.models import ServedModel
from service.outputs import NEEDS_PHOTO, Result, Wish
from service.packing import Outcome, Packing
from service.upload import Upload

Encoded = TypeVar("Encoded")

# What is wrong with one photo of several, and leaves the others their masks.
OF_ONE_PHOTO = (InvalidImage, ImageTooLarge, InferenceFailed)


@dataclass(frozen=True)
class Resources:
    """What requests share."""

    admission: Admission
    pool: ThreadPoolExecutor  # decodes and encodes
    max_pixels: int
    on_stage: Callable[[str, float], None]  # hears the seconds of every stage
    on_pixels: Callable[[int], None]  # hears the size of every admitted photo
    on_problem: Callable[[str], None]  # hears the code of each photo that failed among others


@dataclass
class Stages:
    """Seconds spent by stage, for Server-Timing; of several photos the longest."""

    observe: Callable[[str, float], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def record(self, name: str, seconds: float) -> None:
        """Note what a stage took."""
        self.seconds[name] = max(seconds, self.seconds.get(name, 0.0))
        self.observe(name, seconds)

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

    @cached_property
    def stages(self) -> Stages:
        """Where the time went."""
        return Stages(self.resources.on_stage)

    @property
    def contract(self) -> Contract:
        """What the model says of itself."""
        return self.model.engine.contract


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
    with job.resources.admission.claim(_pixels(opened)) as claim:
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
    pixels = sum(_pixels(each) for each in opened if isinstance(each, Image))
    limit = job.resources.admission.max_pixels
    if pixels > limit:
        raise ImageTooLarge(f"{pixels} pixels in one request, the limit is {limit}: send fewer")
    with job.resources.admission.claim(pixels) as claim:
        work = [_outcome(*pair, claim, job, began) for pair in zip(uploads, opened, strict=True)]
        outcomes = await _all(work)
        pack = partial(packing.pack, outcomes, job.wish, how)
        body, kind = await claim.work(job.resources.pool, pack)
    return Answer(body, kind, job.stages)


async def _all(work: Sequence[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """Wait for all; the first failure cancels the others, and is raised as it is."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _or_problem(work: Coroutine[Any, Any, Encoded], job: Job) -> Encoded | ServiceError:
    """The result, or what is wrong with this one photo."""
    try:
        return await work
    except OF_ONE_PHOTO as error:
        job.resources.on_problem(error.code)
        return error


async def _outcome(
    upload: Upload, opened: Image | ServiceError, claim: Claim, job: Job, began: float
) -> Outcome:
    if isinstance(opened, ServiceError):
        return Outcome(upload.name, error=opened)
    encode = partial(_encode_outcome, upload.name)
    made = await _or_problem(_segmented(opened, claim, job, encode, began), job)
    return Outcome(upload.name, error=made) if isinstance(made, ServiceError) else made


def _encode_outcome(name: str, result: Result, wish: Wish) -> Outcome:
    return Outcome(name, result.photo.size, outputs.encode_each(result, wish))


async def _open(data: bytes, job: Job) -> Image:
    opening = partial(imaging.open_checked, data, job.resources.max_pixels)
    return await asyncio.get_running_loop().run_in_executor(job.resources.pool, opening)


def _pixels(image: Image) -> int:
    return image.width * image.height


async def _segmented(
    opened: Image,
    claim: Claim,
    job: Job,
    encode: Callable[[Result, Wish], Encoded],
    began: float,
) -> Encoded:
    """Segment an opened image whose memory is claimed; `began`: when decoding did."""
    pool, stages = job.resources.pool, job.stages
    job.resources.on_pixels(_pixels(opened))
    photo, fitted = await claim.work(pool, partial(_prepare, opened, job))
    stages.record("decode", time.monotonic() - began)
    prediction, timing = await job.model.batcher.submit(fitted.pixels, deadline=job.deadline)
    stages.record("queue", timing.queued_s)
    stages.record("infer", timing.ran_s)
    with stages.measured("encode"):
        finish = partial(_finish, photo, fitted, prediction, job, encode)
        return await claim.work(pool, finish)


def _prepare(opened: Image, job: Job) -> tuple[Photo, Fitted]:
    whole = NEEDS_PHOTO & job.wish.all_outputs
    reduce_to = None if whole else max(job.model.engine.input_size)
    photo = imaging.decode(opened, reduce_to=reduce_to)
    return photo, imaging.fit(photo, job.contract.input)


def _finish(
    photo: Photo,
    fitted: Fitted,
    prediction: Prediction,
    job: Job,
    encode: Callable[[Result, Wish], Encoded],
) -> Encoded:
    labels = imaging.restore(prediction.labels, fitted, photo.size)
    confidence = prediction.confidence
    if confidence is not None:
        confidence = imaging.restore(confidence, fitted, photo.size)
    return encode(Result(photo, labels, confidence, job.contract), job.wish)
