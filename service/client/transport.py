"""`Client` and `AsyncClient`: one photo in, one typed answer out, with retries.

with Client("http://localhost:8000") as client:
    answer = client.segment("cat.jpg", output="overlay")
    Path("cat.overlay.png").write_bytes(answer.content)
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from service.client import pictures, protocol
from service.client.errors import BadAnswerError
from service.client.exchange import TIMEOUT_S, Ask, Exchange
from service.client.jobs.job import Job
from service.client.jobs.requests import Jobs
from service.client.protocol import ModelInfo, Segmentation
from service.client.retry import Outcome, RetryPolicy

Done = TypeVar("Done")
Given = ParamSpec("Given")
NONE: Mapping[str, object] = MappingProxyType({})


def ask_segment(
    image: bytes, outputs: tuple[str, ...], model: str | None, options: Mapping[str, object]
) -> Ask:
    """Build the request for these outputs of a photo."""
    params = protocol.parameters(outputs, model, options)
    most = protocol.most_bytes(outputs, pictures.size_of(image))
    return Ask("POST", "/segment", params, image, protocol.media_type(image), most)


def ask_segment_url(
    url: str, outputs: tuple[str, ...], model: str | None, options: Mapping[str, object]
) -> Ask:
    """Build the request for a photo that the service fetches itself."""
    params = protocol.parameters(outputs, model, options)
    body, most = json.dumps({"url": url}).encode(), protocol.most_bytes(outputs, None)
    return Ask("POST", "/segment", params, body, protocol.JSON, most)


class AsyncClient:
    """A client for asyncio. Raises StatusError, UnreachableError, BadAnswerError, UsageError.

    `on_retry` is called with every outcome that is retried. `transport` replaces the connections
    to `url`, for example by httpx.ASGITransport.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retry: RetryPolicy | None = None,
        max_connections: int = 100,
        on_retry: Callable[[Outcome], None] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._exchange = Exchange(
            url,
            api_key=api_key,
            timeout_s=timeout_s,
            retry=retry,
            max_connections=max_connections,
            on_retry=on_retry,
            transport=transport,
        )
        self._jobs = Jobs(self._exchange)

    async def segment(
        self,
        image: bytes | Path | str,
        output: str = "mask",
        model: str | None = None,
        options: Mapping[str, object] = NONE,
    ) -> Segmentation:
        """Segments an image, given as bytes or as a path; `output` may be a comma list.

        `options`: further parameters of the service's query, such as `{"fit": "sliding", "alpha":
        0.7}`.
        """
        outputs = protocol.parse_outputs(output)
        if not isinstance(image, bytes):
            image = await asyncio.to_thread(protocol.image_bytes, image)
        response = await self._exchange.send(ask_segment(image, outputs, model, options))
        size, side = pictures.size_of(image), options.get("max_side")
        max_side = None if side is None else int(str(side))
        return await asyncio.to_thread(protocol.segmentation, response, outputs, size, max_side)

    async def segment_url(
        self,
        url: str,
        output: str = "mask",
        model: str | None = None,
        options: Mapping[str, object] = NONE,
    ) -> Segmentation:
        """Segments a photo that the service fetches, if it allows the URL's host."""
        outputs = protocol.parse_outputs(output)
        response = await self._exchange.send(ask_segment_url(url, outputs, model, options))
        return await asyncio.to_thread(protocol.segmentation, response, outputs)

    async def submit_job(
        self,
        archive: Path | str | None = None,
        *,
        urls: Sequence[str] = (),
        paths: Sequence[str] = (),
        output: str = "mask",
        model: str | None = None,
        options: Mapping[str, object] = NONE,
    ) -> Job:
        """Queue many photos: a ZIP file, URLs, or paths in the service's own folder."""
        params = protocol.parameters(protocol.parse_outputs(output), model, options)
        return await self._jobs.submit(params, archive, urls=urls, paths=paths)

    async def job(self, name: str) -> Job:
        """Return the state of a job."""
        return await self._jobs.get(name)

    async def jobs(self) -> tuple[Job, ...]:
        """List the jobs of the key."""
        return await self._jobs.all()

    async def watch_job(self, name: str, on_change: Callable[[Job], None] | None = None) -> Job:
        """Wait until a job ends; call `on_change` with its state at every change."""
        return await self._jobs.watch(name, on_change)

    async def fetch_job(
        self, name: str, to: Path | str, on_bytes: Callable[[int, int | None], None] | None = None
    ) -> Path:
        """Download the result of a job that is done, a ZIP, to a new file.

        A download that was interrupted continues where it stopped, also in another process.
        `on_bytes` is called with the number of downloaded bytes and the total.
        """
        return await self._jobs.fetch(name, Path(to), on_bytes)

    async def cancel_job(self, name: str) -> None:
        """Cancel a job if it runs, and remove it with its result."""
        await self._jobs.cancel(name)

    async def models(self) -> tuple[ModelInfo, ...]:
        """The models that the service offers."""
        return protocol.models(await self._exchange.send(Ask("GET", "/models")))

    async def ready(self) -> bool:
        """Return whether the service takes requests now, from a single request."""
        try:
            outcome = await self._exchange.attempt(Ask("GET", "/readyz"))
        except BadAnswerError:
            return False
        return isinstance(outcome, httpx.Response) and outcome.is_success

    async def aclose(self) -> None:
        await self._exchange.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _in_thread(
    method: Callable[Concatenate[AsyncClient, Given], Coroutine[Any, Any, Done]],
) -> Callable[Concatenate[Client, Given], Done]:
    """Return the method of `Client` that waits for this method of its `AsyncClient`."""

    @wraps(method)
    def call(self: Client, /, *args: Given.args, **kwargs: Given.kwargs) -> Done:
        return self._wait(lambda client: method(client, *args, **kwargs))

    return call


class Client:
    """A client for code without asyncio: it runs an `AsyncClient` in a thread.

    Its methods are those of `AsyncClient`; functions that it is given are called in that thread.
    httpx without asyncio can limit the time of each read only, not of a whole answer.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._new = partial(AsyncClient, url, api_key=api_key, timeout_s=timeout_s, retry=retry)
        self._client = self._new()
        self._loop: asyncio.AbstractEventLoop | None = None  # from the first request on
        self._process = os.getpid()
        self._starting = threading.Lock()

    segment = _in_thread(AsyncClient.segment)
    segment_url = _in_thread(AsyncClient.segment_url)
    submit_job = _in_thread(AsyncClient.submit_job)
    job = _in_thread(AsyncClient.job)
    jobs = _in_thread(AsyncClient.jobs)
    watch_job = _in_thread(AsyncClient.watch_job)
    fetch_job = _in_thread(AsyncClient.fetch_job)
    cancel_job = _in_thread(AsyncClient.cancel_job)
    models = _in_thread(AsyncClient.models)
    ready = _in_thread(AsyncClient.ready)

    def close(self) -> None:
        """Close the connections and end the thread."""
        if self._loop is None or self._process != os.getpid():
            return
        self._wait(AsyncClient.aclose)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, work: Callable[[AsyncClient], Coroutine[Any, Any, Done]]) -> Done:
        """Wait for the result of a coroutine; cancel it when interrupted."""
        loop = self._running()
        future = asyncio.run_coroutine_threadsafe(work(self._client), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._process != os.getpid():  # a fork has the memory, not the thread
                self._client, self._loop, self._process = self._new(), None, os.getpid()
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
                self._thread.start()
            return self._loop
