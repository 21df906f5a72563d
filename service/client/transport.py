"""`Client` and `AsyncClient`: one photo in, one typed answer out, with retries.

with Client("http://localhost:8000") as client:
    answer = client.segment("cat.jpg", output="overlay")
    Path("cat.overlay.png").write_bytes(answer.content)
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

import httpx

from service.client import pictures, protocol
from service.client.errors import BadAnswerError, StatusError, UnreachableError, UsageError
from service.client.plain import sentence
from service.client.protocol import ModelInfo, Segmentation
from service.client.retry import Outcome, Retries, RetryPolicy
from service.client.route import UnknownHostError, route, shown

# httpcore tries to import sniffio several times per request, and anyio no longer installs it. If
# it is missing, each try searches the whole import path, which takes a third of the CPU time of a
# request. Tell Python that it does not exist.
if importlib.util.find_spec("sniffio") is None:
    sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type] # None: "there is none"

TIMEOUT_S = 120.0  # long enough for a full queue of a slow model
CONNECT_TIMEOUT_S = 10.0
# A try may take one more second for each of so many bytes sent or received. httpx's own timeout is
# per read, and a peer that sends a byte per second never reaches it.
SLOWEST_BYTES_PER_S = 32 << 10
MOST_BYTES_OF_AN_ERROR = 64 << 10
Done = TypeVar("Done")
NONE: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Ask:
    """An HTTP request, which may be sent several times."""

    method: str
    path: str
    params: dict[str, str] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    content_type: str | None = None
    most_bytes: int = protocol.SMALLEST_LIMIT  # of a good answer

    def headers(self) -> dict[str, str]:
        """Return the headers. Compression is refused: a few kilobytes could unpack to gigabytes."""
        kind = {} if self.content_type is None else {"Content-Type": self.content_type}
        return {"Accept-Encoding": "identity", **kind}


def ask_segment(
    image: bytes, outputs: tuple[str, ...], model: str | None, options: Mapping[str, object]
) -> Ask:
    """Build the request for these outputs of a photo."""
    params = {"output": ",".join(outputs)}
    params |= {name: str(value) for name, value in options.items()}
    if model is not None:
        params["model"] = model
    most = protocol.most_bytes(outputs, pictures.size_of(image))
    return Ask("POST", "/segment", params, image, protocol.media_type(image), most)


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
        self._retry = retry or RetryPolicy()
        self._on_retry = on_retry
        self._timeout_s = timeout_s
        base_url = protocol.check_url(url)
        self._route = route(base_url)
        self._place = shown(httpx.URL(base_url))
        self._was_reached = False  # a host that answered once exists: its name may come back
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers=_credentials(api_key),
            proxy=self._route.proxy,
            transport=transport,
            verify=self._route.tls,
            trust_env=False,  # `route` has read it
            # No pool timeout: a caller that starts more requests than connections chooses to wait.
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(
                max_connections=max_connections, max_keepalive_connections=max_connections
            ),
        )

    async def segment(
        self,
        image: bytes | Path | str,
        output: str = "mask",
        model: str | None = None,
        options: Mapping[str, object] = NONE,
    ) -> Segmentation:
        """Segments an image, given as bytes or as a path; `output` may be a comma list.

        `options`: what else the service's query takes, as `{"fit": "sliding", "alpha": 0.7}`.
        """
        outputs = protocol.parse_outputs(output)
        if not isinstance(image, bytes):
            image = await asyncio.to_thread(protocol.image_bytes, image)
        response = await self._send(ask_segment(image, outputs, model, options))
        size, side = pictures.size_of(image), options.get("max_side")
        max_side = None if side is None else int(str(side))
        return await asyncio.to_thread(protocol.segmentation, response, outputs, size, max_side)

    async def models(self) -> tuple[ModelInfo, ...]:
        """The models that the service offers."""
        return protocol.models(await self._send(Ask("GET", "/models")))

    async def ready(self) -> bool:
        """Whether the service takes work now; asks once."""
        try:
            outcome = await self._attempt(Ask("GET", "/readyz"))
        except BadAnswerError:
            return False
        return isinstance(outcome, httpx.Response) and outcome.is_success

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, ask: Ask) -> httpx.Response:
        retries = Retries(self._retry)
        outcome = await self._try(ask)
        while (delay_s := retries.delay_after(outcome)) is not None:
            if self._on_retry is not None:
                self._on_retry(outcome)
            await asyncio.sleep(delay_s)
            outcome = await self._try(ask)
        try:
            return retries.settle(outcome)
        except StatusError as error:
            if error.code.startswith("http-"):  # no problem document: not the service's own words
                raise error.at(self._route.via) from None
            raise
        except UnreachableError as error:
            raise UnreachableError(f"{self._place}: {error}") from error.__cause__

    async def _try(self, ask: Ask) -> Outcome:
        """Make one try; raises UsageError for a host that never existed, probably a typo."""
        outcome = await self._attempt(ask)
        if isinstance(outcome, UnknownHostError) and not self._was_reached:
            raise UsageError(f"{self._place}: {outcome}: correct the host name")
        return outcome

    async def _attempt(self, ask: Ask) -> Outcome:
        """Make one try with limits on time and bytes; raises BadAnswerError beyond them."""
        request = self._http.build_request(
            ask.method, ask.path, params=ask.params, content=ask.body, headers=ask.headers()
        )
        ends = asyncio.get_running_loop().time() + self._timeout_s
        ends += len(ask.body or b"") / SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout_at(ends) as timer:
                return await self._exchange(request, ask.most_bytes, timer, ends)
        except TimeoutError:
            slow = f"no whole answer within {self._timeout_s:g} s"
            return self._route.explained(httpx.ReadTimeout(slow, request=request))
        except httpx.RequestError as error:
            return self._route.explained(error)

    async def _exchange(
        self, request: httpx.Request, most_bytes: int, timer: asyncio.Timeout, ends: float
    ) -> httpx.Response:
        """Send the request and read the answer; extend `timer` as bytes arrive."""
        response = await self._http.send(request, stream=True)
        self._was_reached = True
        try:
            limit = most_bytes if response.is_success else MOST_BYTES_OF_AN_ERROR
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                timer.reschedule(ends + len(body) / SLOWEST_BYTES_PER_S)
                if len(body) > limit:
                    break
        finally:
            await response.aclose()
        if response.is_success:
            _check_bounds(response, len(body), limit)
        headers = [pair for pair in response.headers.raw if pair[0].lower() != b"content-encoding"]
        content = bytes(body[:limit])
        return httpx.Response(
            response.status_code, headers=headers, content=content, request=request
        )


class Client:
    """A client for code without asyncio: it runs an `AsyncClient` in a thread.

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

    def segment(
        self,
        image: bytes | Path | str,
        output: str = "mask",
        model: str | None = None,
        options: Mapping[str, object] = NONE,
    ) -> Segmentation:
        """See `AsyncClient.segment`."""
        return self._wait(lambda client: client.segment(image, output, model, options))

    def models(self) -> tuple[ModelInfo, ...]:
        """The models that the service offers."""
        return self._wait(AsyncClient.models)

    def ready(self) -> bool:
        """Whether the service takes work now; asks once."""
        return self._wait(AsyncClient.ready)

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


def _check_bounds(response: httpx.Response, received: int, limit: int) -> None:
    """Raise BadAnswerError if an answer is too long, or compressed without being asked."""
    if received > limit:
        raise BadAnswerError(f"the answer has more than {limit} bytes")
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise BadAnswerError(
            f"the answer has Content-Encoding {sentence(encoding)}, which was not requested"
        )


def _credentials(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
