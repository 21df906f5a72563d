"""Send HTTP requests, with retries and with limits on time and bytes."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from service.client import protocol
from service.client.errors import BadAnswerError, StatusError, UnreachableError, UsageError
from service.client.plain import sentence
from service.client.retry import Outcome, Retries, RetryPolicy, was_not_taken
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
PIECE = 256 << 10  # bytes of a file that are sent at once


@dataclass(frozen=True)
class Ask:
    """An HTTP request, which may be sent several times."""

    method: str
    path: str
    params: dict[str, str] = field(default_factory=dict)
    body: bytes | Path | None = field(default=None, repr=False)  # a path: the file's content
    content_type: str | None = None
    most_bytes: int = protocol.SMALLEST_LIMIT  # of a good answer
    once: bool = False  # must not be carried out twice
    extra: dict[str, str] = field(default_factory=dict)  # further headers

    def headers(self) -> dict[str, str]:
        """Return the headers. Compression is refused: a few kilobytes could unpack to gigabytes."""
        kind = {} if self.content_type is None else {"Content-Type": self.content_type}
        length = {"Content-Length": str(self.length())} if isinstance(self.body, Path) else {}
        return {"Accept-Encoding": "identity", **kind, **length, **self.extra}

    def content(self) -> bytes | AsyncIterator[bytes] | None:
        """Return the body as httpx takes it."""
        return _pieces(self.body) if isinstance(self.body, Path) else self.body

    def length(self) -> int:
        """Return the bytes of the body."""
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body or b"")


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


class Exchange:
    """The connections to a service."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        retry: RetryPolicy | None,
        max_connections: int,
        on_retry: Callable[[Outcome], None] | None,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._retry = retry or RetryPolicy()
        self._on_retry = on_retry
        self.timeout_s = timeout_s  # of one try, besides the seconds for its bytes
        base_url = protocol.check_url(url)
        self._route = route(base_url)
        self._place = shown(httpx.URL(base_url))
        self._was_reached = False  # then the host exists: a failed look-up is temporary
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers=_credentials(api_key),
            proxy=self._route.proxy,
            transport=transport,
            verify=self._route.tls,
            trust_env=False,  # `route` has read the environment
            # No pool timeout: a caller that starts more requests than connections chooses to wait.
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(
                max_connections=max_connections, max_keepalive_connections=max_connections
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, ask: Ask) -> httpx.Response:
        """Return a good answer; raises StatusError, UnreachableError, BadAnswerError, UsageError.

        Tries again while the policy allows it.
        """
        retries = self.retries()
        outcome = await self._try(ask)
        while not (ask.once and not was_not_taken(outcome)) and await self.again(retries, outcome):
            outcome = await self._try(ask)
        return self.settle(retries, outcome)

    def retries(self) -> Retries:
        """Start counting the tries of a request."""
        return Retries(self._retry)

    async def again(self, retries: Retries, outcome: Outcome) -> bool:
        """Wait until the next try; return False if there is none."""
        delay_s = retries.delay_after(outcome)
        if delay_s is None:
            return False
        if self._on_retry is not None:
            self._on_retry(outcome)
        await asyncio.sleep(delay_s)
        return True

    def settle(self, retries: Retries, outcome: Outcome) -> httpx.Response:
        """Return the last outcome if it is good; raises StatusError or UnreachableError."""
        try:
            return retries.settle(outcome)
        except StatusError as error:
            if error.code.startswith("http-"):  # not a problem document, so not the service's text
                raise error.at(self._route.via) from None
            raise
        except UnreachableError as error:
            raise UnreachableError(f"{self._place}: {error}") from error.__cause__

    async def _try(self, ask: Ask) -> Outcome:
        """Make one try; raises UsageError for a host that never existed, probably a typo."""
        return self.checked(await self.attempt(ask))

    def checked(self, outcome: Outcome) -> Outcome:
        """Return an outcome; raises UsageError for a host that never existed."""
        if isinstance(outcome, UnknownHostError) and not self._was_reached:
            raise UsageError(f"{self._place}: {outcome}: correct the host name")
        return outcome

    async def attempt(self, ask: Ask) -> Outcome:
        """Make one try with limits on time and bytes; raises BadAnswerError beyond them."""
        request = self._request(ask)
        allowed_s = self.timeout_s + ask.length() / SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout(allowed_s) as timer, self._opened(request) as response:
                return await whole(response, ask.most_bytes, timer)
        except TimeoutError:
            slow = f"no whole answer within {self.timeout_s:g} s"
            return self._route.explained(httpx.ReadTimeout(slow, request=request))
        except httpx.RequestError as error:
            return self._route.explained(error)

    @asynccontextmanager
    async def stream(self, ask: Ask) -> AsyncIterator[httpx.Response]:
        """Make one try; yield the answer before its body is read. Raises httpx.RequestError."""
        try:
            async with self._opened(self._request(ask)) as response:
                yield response
        except httpx.RequestError as error:
            raise self._route.explained(error) from error

    def _request(self, ask: Ask) -> httpx.Request:
        return self._http.build_request(
            ask.method, ask.path, params=ask.params, content=ask.content(), headers=ask.headers()
        )

    @asynccontextmanager
    async def _opened(self, request: httpx.Request) -> AsyncIterator[httpx.Response]:
        response = await self._http.send(request, stream=True)
        self._was_reached = True
        try:
            yield response
        finally:
            await response.aclose()


async def whole(
    response: httpx.Response, most_bytes: int, timer: asyncio.Timeout
) -> httpx.Response:
    """Read the body of a response; extend `timer` as bytes arrive.

    Raises BadAnswerError for a good answer that is compressed, or longer than `most_bytes`. The
    bodies of errors are cut at MOST_BYTES_OF_AN_ERROR.
    """
    limit = most_bytes if response.is_success else MOST_BYTES_OF_AN_ERROR
    ends = timer.when() or 0.0
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        timer.reschedule(ends + len(body) / SLOWEST_BYTES_PER_S)
        if len(body) > limit:
            break
    if response.is_success:
        if len(body) > limit:
            raise BadAnswerError(f"the answer has more than {limit} bytes")
        check_plain(response)
    headers = [pair for pair in response.headers.raw if pair[0].lower() != b"content-encoding"]
    content = bytes(body[:limit])
    return httpx.Response(
        response.status_code, headers=headers, content=content, request=response.request
    )


def check_plain(response: httpx.Response) -> None:
    """Raise BadAnswerError if an answer is compressed."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise BadAnswerError(
            f"the answer has Content-Encoding {sentence(encoding)}, which was not requested"
        )


def _credentials(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
