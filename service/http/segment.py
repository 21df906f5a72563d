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

from postprocess import windows
from postprocess.results import outputs
from postprocess.results.outputs import NEEDS_PHOTO, Result, Wish
from postprocess.windows import Sliding
from service.decoders.interface import Decoders
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
from service.images import join
from service.images.prepare import Header, Plan, Prepared
from service.images.refusals import refusals
from service.inference.batcher import Share, Timing
from service.inference.contract import Contract
from service.inference.engine import Prediction
from service.inference.models import ServedModel

Done = TypeVar("Done")
Made = TypeVar("Made")

BYTES_PER_PIXEL = 14  # of memory for each admitted pixel, see docs/deploy.md
AVIF_BYTES = 25  # of memory for each pixel, while it is encoded
OUTPUT_S_PER_PIXEL, REGIONS_S_PER_PIXEL = 5e-9, 20e-9  # to make outputs, about
CLASSES_PER_PIXEL = 64  # whose probabilities take about as much memory as BYTES_PER_PIXEL

# Errors of one photo, which do not affect the other photos of the request.
OF_ONE_PHOTO = (InvalidImage, ImageTooLarge, InferenceFailed)

# Called after every stage with its name, its seconds, and the seconds since it ended.
OnStage = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Resources:
    """Resources that all requests share."""

    admission: Admission
    pool: ThreadPoolExecutor  # encodes
    decoders: Decoders
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
    own_bytes: int = 0  # of the request's body and of the photos unpacked from it
    share: Share = field(default_factory=Share)  # of the engine

    @cached_property
    def stages(self) -> Stages:
        """The durations of the stages."""
        return Stages(self.resources.on_stage)

    @property
    def contract(self) -> Contract:
        """The model's contract."""
        return self.model.engine.contract

    @property
    def plan(self) -> Plan:
        """The inputs and pictures to make from each photo."""
        whole = not NEEDS_PHOTO.isdisjoint(self.wish.all_outputs)
        return Plan(self.contract.input, self.sliding, whole, decoded=self.wish.smooth)


async def segment(uploads: Sequence[Upload], job: Job, *, several: bool = False) -> Answer:
    """Segment the encoded images of a request; raises ServiceError subclasses.

    `several`: answer in the form for several images, even for a single one.
    """
    if several or len(uploads) > 1:
        job = replace(job, wish=packing.wish_for_each(job.wish), share=Share(several=True))
        return await _segment_several(uploads, job, packing.packing_for(job.accept))
    if not job.wish.outputs:
        raise NotAcceptable(
            f"Accept: {job.accept}: a single photo has no such answer; set `output`"
        )
    return await _segment_one(uploads[0].data, job)


async def segment_each(
    photos: Sequence[bytes], job: Job, make: Callable[[Result], Made]
) -> list[Made]:
    """Segment encoded images; return the result of `make` for each. Any error fails them all."""
    began = time.monotonic()
    job.share.several = len(photos) > 1
    opened = await _all([_open(photo, job) for photo in photos])

    async def made(found: Header, claim: Claim) -> Made:
        result = await _result(found, claim, job, began)
        return await claim.work(job.resources.pool, partial(make, result))

    with job.resources.admission.claim(_checked_memory(opened, job)) as claim:
        return await _all([made(each, claim) for each in opened])


async def segment_photo(data: bytes, job: Job) -> tuple[dict[str, bytes], tuple[int, int]]:
    """Return the outputs of an encoded image by name, and its size (W, H)."""
    began = time.monotonic()
    found = await _open(data, job)
    with job.resources.admission.claim(_memory(found, job)) as claim:
        return await _segmented(found, claim, job, began)


async def _segment_one(data: bytes, job: Job) -> Answer:
    began = time.monotonic()
    found = await _open(data, job)
    with job.resources.admission.claim(_memory(found, job)) as claim:
        files, _ = await _segmented(found, claim, job, began)
        join_files = partial(outputs.joined, files, job.wish)
        if len(files) == 1:
            body, media_type = join_files()
        else:
            body, media_type = await claim.work(job.resources.pool, join_files)
    return Answer(body, media_type, job.stages)


async def _segment_several(uploads: Sequence[Upload], job: Job, how: Packing) -> Answer:
    """Segment several images concurrently, so that they share batches.

    An error of one photo is reported in the answer. An error of the whole request is
    raised and cancels all of its photos.
    """
    began = time.monotonic()
    opening = (_or_problem(_open(upload.data, job), job) for upload in uploads)
    opened = await asyncio.gather(*opening)
    found = [each for each in opened if isinstance(each, Header)]
    admission = job.resources.admission
    with (
        admission.claim(_checked_memory(found, job)) as claim,
        admission.growing(job.own_bytes) as hold,
    ):

        async def outcome(upload: Upload, found: Header | ServiceError) -> Outcome:
            made = await _outcome(upload, found, claim, job, began)
            hold(sum(map(len, made.files.values())))  # outputs wait for those of other photos
            return made

        outcomes = await _all([outcome(*pair) for pair in zip(uploads, opened, strict=True)])
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
    upload: Upload, found: Header | ServiceError, claim: Claim, job: Job, began: float
) -> Outcome:
    if isinstance(found, ServiceError):
        return Outcome(upload.name, error=found)
    made = await _or_problem(_segmented(found, claim, job, began), job)
    if isinstance(made, ServiceError):
        return Outcome(upload.name, error=made)
    files, size = made
    model = job.model
    return Outcome(upload.name, size, files, model=model.name, digest=model.engine.digest)


async def _open(data: bytes, job: Job) -> Header:
    """Read the header and refuse images that are too large."""
    opening = job.resources.decoders.open(
        data, job.resources.max_pixels, job.contract.input.samples
    )
    found = await asyncio.wrap_future(opening)
    if job.sliding:
        fewest = min(_sizes(found), key=lambda size: _windows(size, job))
        with refusals():
            windows.check(fewest, job.contract.input, job.sliding)
    return found


def _memory(found: Header, job: Job) -> int:
    """Return the pixels to reserve: for the photo, the outputs of its windows, and its files."""
    pieces = max(_windows(size, job) for size in _sizes(found))
    height, width = job.model.engine.input_size
    of_windows = pieces * height * width * _per_window(job) if pieces > 1 else 0
    most = job.resources.admission.max_bytes // BYTES_PER_PIXEL  # larger files are refused
    return found.memory + of_windows + min(most, round(found.pixels * _extra_files(job.wish)))


def _extra_files(wish: Wish) -> float:
    """Return the memory of a photo's files, as multiples of what a pixel stands for.

    BYTES_PER_PIXEL are enough for one lossless picture. Each further one keeps up to 3 bytes a
    pixel, and one inside the JSON up to 15, as it is there as bytes, as base64 and as JSON.
    """
    lossless = {name for name in NEEDS_PHOTO if wish.kind(name)[0] == "image/png"}
    alone, inside = lossless & set(wish.outputs), lossless & set(wish.include)
    encoder = 0
    if wish.overlay_format == "avif" and not NEEDS_PHOTO.isdisjoint(wish.all_outputs):
        encoder = AVIF_BYTES * (2 if "side-by-side" in wish.outputs else 1)
    return (3 * max(0, len(alone) - 1) + 15 * len(inside) + encoder) / BYTES_PER_PIXEL


def _per_window(job: Job) -> int:
    """Return the memory of a window's outputs, as a multiple of what its pixels stand for.

    Probabilities are kept twice, at a quarter of the sides: of each window, and of all together.
    """
    if outputs.extras(job.wish, job.contract) != "probabilities":
        return 1
    return 1 + len(job.contract.classes) // CLASSES_PER_PIXEL


def _checked_memory(found: Sequence[Header], job: Job) -> int:
    """Return the pixels to reserve for all photos of a request; raises ImageTooLarge."""
    pixels = sum(_memory(each, job) for each in found)
    limit = job.resources.admission.max_pixels
    if pixels > limit:
        raise ImageTooLarge(
            f"{pixels} pixels in one request, the limit is {limit}: send fewer photos"
        )
    return pixels


def _sizes(found: Header) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return both possible sizes (W, H): not all headers tell the orientation."""
    return found.size, found.size[::-1]


def _windows(size: tuple[int, int], job: Job) -> int:
    if job.sliding is None:
        return 1
    return windows.count(size, job.contract.input, job.sliding.overlap)


async def _segmented(
    found: Header, claim: Claim, job: Job, began: float
) -> tuple[dict[str, bytes], tuple[int, int]]:
    """Return the outputs of an image by name, and its size (W, H); the rest as `_result`."""
    result = await _result(found, claim, job, began)
    with job.stages.measured("encode"):
        wish = replace(job.wish, most_bytes=job.resources.admission.max_bytes)
        encoding = job.resources.decoders.encode(found, result, wish)
        return await claim.result(encoding), result.photo.size


async def _result(found: Header, claim: Claim, job: Job, began: float) -> Result:
    """Segment an image whose memory is reserved; `began`: when decoding started."""
    resources = job.resources
    resources.on_pixels(found.pixels)
    prepared = await claim.result(resources.decoders.prepare(found, job.plan))
    decoding = time.monotonic() - began
    job.stages.record("decode", decoding)
    encoding = _encoding_s(found, job.wish)
    job.share.charge(decoding + encoding, found.cpu_s + prepared.cpu_s + encoding)
    predictions = await _infer(prepared, job)
    join_all = partial(join.result, prepared, predictions, job.contract)
    if len(predictions) == 1:
        return join_all()
    return await claim.work(resources.pool, join_all)  # windows of a large photo are copied


def _encoding_s(found: Header, wish: Wish) -> float:
    """Estimate the processor time that the outputs will take."""
    regions = REGIONS_S_PER_PIXEL if wish.finds_regions else 0
    return found.pixels * (OUTPUT_S_PER_PIXEL * len(wish.all_outputs) + regions)


async def _infer(prepared: Prepared, job: Job) -> list[Prediction]:
    """Run the model on all inputs of a photo; if one fails, the others are cancelled."""
    began = time.monotonic()
    batcher = job.model.batcher
    extras = outputs.extras(job.wish, job.contract)
    # As many windows as can run at once are submitted: all of them would delay other photos.
    turns = asyncio.Semaphore(max(2, batcher.live_sessions * job.model.max_batch))
    job.share.several |= len(prepared.pixels) > 1

    async def predicted(pixels: NDArray[np.uint8]) -> tuple[Prediction, Timing]:
        async with turns:
            return await batcher.submit(pixels, extras, deadline=job.deadline, share=job.share)

    answers = await _all([predicted(each) for each in prepared.pixels])
    timings = [timing for _, timing in answers]
    queued = min(timing.queued_s for timing in timings)
    ran = timings[0].ran_s if len(timings) == 1 else time.monotonic() - began - queued
    job.stages.record("queue", queued, ended_ago_s=ran)
    job.stages.record("infer", ran)
    predictions = [prediction for prediction, _ in answers]
    if shadow := job.model.shadow:
        shadow.offer(prepared.pixels, [each.labels for each in predictions], prepared.valid)
    return predictions
