"""The interface of decoders, which also encode outputs, and the simplest kind: threads."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Protocol

from pixels.bands import PHOTO, Samples
from postprocess.results import outputs
from postprocess.results.outputs import Result, Wish
from service.images import imaging
from service.images.prepare import Header, Plan, Prepared, header, prepare
from service.images.refusals import refusals
from service.inference import tensors
from service.inference.tensors import Call, Shape


class Decoders(Protocol):
    """Decode photos, encode outputs, read tensors. Cancelling a future abandons its work."""

    ended: Counter[str]  # processes that ended in the middle of a photo, by reason

    def open(self, data: bytes, max_pixels: int, samples: Samples = PHOTO) -> Future[Header]:
        """Read and check a photo's header; the future raises InvalidImage or ImageTooLarge."""

    def prepare(self, found: Header, plan: Plan) -> Future[Prepared]:
        """Decode a photo and make a model's inputs; the future raises as `open` does."""

    def encode(self, found: Header, result: Result, wish: Wish) -> Future[dict[str, bytes]]:
        """Make the outputs of a photo, by name; the future raises ImageTooLarge."""

    def read_tensor(self, body: bytes, shape: Shape) -> Future[Call]:
        """Read a tensor from JSON; the future raises InvalidRequest."""

    @property
    def healthy(self) -> bool:
        """Whether photos are being decoded."""

    def close(self) -> None:
        """Abandon all photos."""


class Threads:
    """Decoders in threads of the service: work that has begun cannot be abandoned."""

    healthy = True

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.ended = Counter[str]()

    def open(self, data: bytes, max_pixels: int, samples: Samples = PHOTO) -> Future[Header]:
        """Read and check a photo's header."""
        return self._pool.submit(_open, data, max_pixels, samples)

    def prepare(self, found: Header, plan: Plan) -> Future[Prepared]:
        """Decode a photo and make a model's inputs."""
        return self._pool.submit(partial(_prepare, found, plan))

    def encode(self, found: Header, result: Result, wish: Wish) -> Future[dict[str, bytes]]:
        """Make the outputs of a photo, by name."""
        del found
        return self._pool.submit(_encode, result, wish)

    def read_tensor(self, body: bytes, shape: Shape) -> Future[Call]:
        """Read a tensor from JSON."""
        return self._pool.submit(tensors.read, body, shape)

    def close(self) -> None:
        """Wait for the photos that have started."""


def _open(data: bytes, max_pixels: int, samples: Samples) -> Header:
    began = time.thread_time()
    opened = imaging.open_checked(data, max_pixels, samples)
    return replace(header(opened), opened=opened, cpu_s=time.thread_time() - began)


def _prepare(found: Header, plan: Plan) -> Prepared:
    if found.opened is None:
        raise ValueError("the header was read by another process")
    began = time.thread_time()
    return replace(prepare(found.opened, plan), cpu_s=time.thread_time() - began)


def _encode(result: Result, wish: Wish) -> dict[str, bytes]:
    with refusals():
        return outputs.encode_each(result, wish)
