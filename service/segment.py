"""One request from bytes to bytes: decode, fit, queue, restore, encode."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from service import imaging
from service.batcher import Timing
from service.contract import Contract
from service.errors import InvalidRequest
from service.imaging import Fitted, Photo
from service.limits import Admission
from service.models import ServedModel

# Outputs by name: media type and the name of the file inside a ZIP of several.
OUTPUTS = {
    "mask": ("image/png", "mask.png"),
    "color": ("image/png", "color.png"),
    "overlay": ("image/jpeg", "overlay.jpg"),
    "json": ("application/json", "result.json"),
    "rle": ("application/json", "rle.json"),
    "npz": ("application/octet-stream", "labels.npz"),
}
ZIP = "application/zip"
NEEDS_PHOTO = {"overlay"}  # in full resolution


@dataclass(frozen=True)
class Wish:
    """What a client asked for."""

    outputs: tuple[str, ...]
    alpha: float = 0.5
    include: tuple[str, ...] = ()  # images inside the JSON, as base64


@dataclass
class Stages:
    """Seconds spent by stage, for Server-Timing."""

    seconds: dict[str, float] = field(default_factory=dict)

    def header(self) -> str:
        return ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in self.seconds.items())


@dataclass(frozen=True)
class Answer:
    """The encoded result."""

    body: bytes
    media_type: str
    stages: Stages


def parse_outputs(text: str, what: str, valid: Iterable[str]) -> tuple[str, ...]:
    """Split a comma list of output names; raises InvalidRequest naming the valid ones."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    wrong = [name for name in names if name not in valid]
    if wrong or not names:
        raise InvalidRequest(f"{what}={text!r}: choose from {', '.join(valid)}")
    return names


async def segment(
    data: bytes,
    model: ServedModel,
    wish: Wish,
    *,
    admission: Admission,
    pool: ThreadPoolExecutor,
    max_pixels: int,
    deadline: float,
) -> Answer:
    """Segment one encoded image; raises ServiceError subclasses."""
    loop = asyncio.get_running_loop()
    stages = Stages()
    contract = model.engine.contract
    began = time.monotonic()
    opened = await loop.run_in_executor(pool, imaging.open_checked, data, max_pixels)
    with admission.claim(opened.width * opened.height):
        full = bool(NEEDS_PHOTO & {*wish.outputs, *wish.include})
        reduce_to = None if full else max(model.engine.input_size)
        work = partial(_prepare, opened, contract, reduce_to)
        photo, fitted = await loop.run_in_executor(pool, work)
        stages.seconds["decode"] = time.monotonic() - began
        labels, timing = await model.batcher.submit(fitted.pixels, deadline=deadline)
        _record(stages, timing)
        began = time.monotonic()
        encode = partial(_encode, photo, fitted, labels, contract, wish)
        body, media_type = await loop.run_in_executor(pool, encode)
        stages.seconds["encode"] = time.monotonic() - began
    return Answer(body, media_type, stages)


def _prepare(opened: Image, contract: Contract, reduce_to: int | None) -> tuple[Photo, Fitted]:
    photo = imaging.decode(opened, reduce_to=reduce_to)
    return photo, imaging.fit(photo, contract.input)


def _record(stages: Stages, timing: Timing) -> None:
    stages.seconds["queue"] = timing.queued_s
    stages.seconds["infer"] = timing.ran_s


def _encode(
    photo: Photo, fitted: Fitted, labels: NDArray[np.uint8], contract: Contract, wish: Wish
) -> tuple[bytes, str]:
    labels = imaging.restore(labels, fitted, photo.size)
    files = {name: _output(name, photo, labels, contract, wish) for name in wish.outputs}
    if len(files) == 1:
        ((name, body),) = files.items()
        return body, OUTPUTS[name][0]
    return imaging.archive({OUTPUTS[name][1]: body for name, body in files.items()}), ZIP


def _output(
    name: str, photo: Photo, labels: NDArray[np.uint8], contract: Contract, wish: Wish
) -> bytes:
    """Encode one output."""
    encoders: dict[str, Callable[[], bytes]] = {
        "mask": lambda: imaging.mask_png(labels, contract.palette),
        "color": lambda: imaging.color_png(labels, contract.palette),
        "overlay": lambda: _overlay(photo, labels, contract, wish.alpha),
        "json": lambda: _json(photo, labels, contract, wish),
        "rle": lambda: _rle(labels, contract),
        "npz": lambda: imaging.npz(labels),
    }
    return encoders[name]()


def _overlay(photo: Photo, labels: NDArray[np.uint8], contract: Contract, alpha: float) -> bytes:
    picture = imaging.overlay(
        photo, labels, contract.palette, alpha=alpha, background=contract.background
    )
    return imaging.jpeg(picture)


def _json(photo: Photo, labels: NDArray[np.uint8], contract: Contract, wish: Wish) -> bytes:
    result: dict[str, Any] = {
        "width": photo.size[0],
        "height": photo.size[1],
        "classes": imaging.summary(labels, contract.classes),
    }
    for name in wish.include:
        body = _output(name, photo, labels, contract, wish)
        result[name] = {"media_type": OUTPUTS[name][0], "base64": imaging.as_text(body)}
    return json.dumps(result).encode()


def _rle(labels: NDArray[np.uint8], contract: Contract) -> bytes:
    present = imaging.summary(labels, contract.classes)
    for entry in present:
        entry["segmentation"] = imaging.rle(labels, entry["id"])
    return json.dumps({"classes": present}).encode()
