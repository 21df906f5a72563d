"""One request from bytes to bytes: decode, fit, queue, restore, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from PIL.Image import Image

from service import imaging, outputs
from service.contract import Contract
from service.engine import Prediction
from service.imaging import Fitted, Photo
from service.limits import Admission
from service.models import ServedModel
from service.outputs import NEEDS_PHOTO, Result, Wish


@dataclass(frozen=True)
class Resources:
    """What requests share."""

    admission: Admission
    pool: ThreadPoolExecutor  # decodes and encodes
    max_pixels: int
    on_stage: Callable[[str, float], None]  # hears the seconds of every stage
    on_pixels: Callable[[int], None]  # hears the size of every admitted photo


@dataclass
class Stages:
    """Seconds spent by stage, for Server-Timing."""

    observe: Callable[[str, float], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def record(self, name: str, seconds: float) -> None:
        """Note what a stage took."""
        self.seconds[name] = seconds
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


async def segment(
    data: bytes, model: ServedModel, wish: Wish, resources: Resources, *, deadline: float
) -> Answer:
    """Segment one encoded image; raises ServiceError subclasses.

    `deadline` is a point of the monotonic clock: work that waits until then is dropped.
    """
    pool, stages = resources.pool, Stages(resources.on_stage)
    contract = model.engine.contract
    opening = partial(imaging.open_checked, data, resources.max_pixels)
    began = time.monotonic()
    opened = await asyncio.get_running_loop().run_in_executor(pool, opening)
    pixels = opened.width * opened.height
    with resources.admission.claim(pixels) as claim:
        resources.on_pixels(pixels)
        reduce_to = None if NEEDS_PHOTO & wish.all_outputs else max(model.engine.input_size)
        photo, fitted = await claim.work(pool, partial(_prepare, opened, contract, reduce_to))
        stages.record("decode", time.monotonic() - began)
        prediction, timing = await model.batcher.submit(fitted.pixels, deadline=deadline)
        stages.record("queue", timing.queued_s)
        stages.record("infer", timing.ran_s)
        with stages.measured("encode"):
            encode = partial(_encode, photo, fitted, prediction, contract, wish)
            body, media_type = await claim.work(pool, encode)
    return Answer(body, media_type, stages)


def _prepare(opened: Image, contract: Contract, reduce_to: int | None) -> tuple[Photo, Fitted]:
    photo = imaging.decode(opened, reduce_to=reduce_to)
    return photo, imaging.fit(photo, contract.input)


def _encode(
    photo: Photo, fitted: Fitted, prediction: Prediction, contract: Contract, wish: Wish
) -> tuple[bytes, str]:
    labels = imaging.restore(prediction.labels, fitted, photo.size)
    confidence = prediction.confidence
    if confidence is not None:
        confidence = imaging.restore(confidence, fitted, photo.size)
    return outputs.encode(Result(photo, labels, confidence, contract), wish)
