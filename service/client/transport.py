"""`Client` and `AsyncClient`: one photo in, one typed answer out, with retries.

with Client("http://localhost:8000") as client:
    answer = client.segment("cat.jpg", output="overlay")
    Path("cat.overlay.png").write_bytes(answer.content)
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

import httpx

from service.client import protocol
from service.client.protocol import Model, Segmentation
from service.client.retry import Outcome, Retries, RetryPolicy

# httpcore tries to import sniffio several times in each request; anyio no longer brings it.
# Where it is missing every try searches the whole path, a third of a request's processor
# time: let Python know at once that it is not there.
if importlib.util.find_spec("sniffio") is None:
    sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type] # None: "there is none"

TIMEOUT_S = 120.0  # a full queue before a slow CPU model: minutes are possible, hours are not
CONNECT_TIMEOUT_S = 10.0
NONE: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Ask:
    """One HTTP request, as often as it must be sent."""

    method: str
    path: str
    params: dict[str, str] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    content_type: str | None = None

    def headers(self) -> dict[str, str]:
        return {} if self.content_type is None else {"Content-Type": self.content_type}


def ask_segment(
    image: bytes, outputs: tuple[str, ...], model: str | None, options: Mapping[str, object]
) -> Ask:
    """The request for these outputs of one photo."""
    params = {"output": ",".join(outputs)}
    params |= {name: str(value) for name, value in options.items()}
    if model is not None:
        params["model"] = model
    return Ask("POST", "/segment", params, image, protocol.media_type(image))


class Client:
    """Blocking client. Raises ServiceError, UnreachableError, BadAnswerError, UsageError."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._retry = retry or RetryPolicy()
        self._http = httpx.Client(
            base_url=protocol.check_url(url),
            headers=_credentials(api_key),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        )

    def segment(
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
        response = self._send(ask_segment(protocol.image_bytes(image), outputs, model, options))
        return protocol.segmentation(response, outputs)

    def models(self) -> tuple[Model, ...]:
        """The models that the service offers."""
        return protocol.models(self._send(Ask("GET", "/models")))

    def ready(self) -> bool:
        """Whether the service takes work now; asks once."""
        outcome = self._attempt(Ask("GET", "/readyz"))
        return isinstance(outcome, httpx.Response) and outcome.is_success

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, ask: Ask) -> httpx.Response:
        retries = Retries(self._retry)
        outcome = self._attempt(ask)
        while (delay_s := retries.delay_after(outcome)) is not None:
            time.sleep(delay_s)
            outcome = self._attempt(ask)
        return retries.settle(outcome)

    def _attempt(self, ask: Ask) -> Outcome:
        try:
            return self._http.request(
                ask.method, ask.path, params=ask.params, content=ask.body, headers=ask.headers()
            )
        except httpx.RequestError as error:
            return error


class AsyncClient:
    """The same for asyncio; `on_retry` hears of every outcome that is tried again."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retry: RetryPolicy | None = None,
        max_connections: int = 100,
        on_retry: Callable[[Outcome], None] | None = None,
    ) -> None:
        self._retry = retry or RetryPolicy()
        self._on_retry = on_retry
        self._http = httpx.AsyncClient(
            base_url=protocol.check_url(url),
            headers=_credentials(api_key),
            # No pool timeout: whoever asks for more than the pool holds has chosen to wait.
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
        """As `Client.segment`."""
        outputs = protocol.parse_outputs(output)
        if not isinstance(image, bytes):
            image = await asyncio.to_thread(protocol.image_bytes, image)
        response = await self._send(ask_segment(image, outputs, model, options))
        return protocol.segmentation(response, outputs)

    async def models(self) -> tuple[Model, ...]:
        """The models that the service offers."""
        return protocol.models(await self._send(Ask("GET", "/models")))

    async def ready(self) -> bool:
        """Whether the service takes work now; asks once."""
        outcome = await self._attempt(Ask("GET", "/readyz"))
        return isinstance(outcome, httpx.Response) and outcome.is_success

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, ask: Ask) -> httpx.Response:
        retries = Retries(self._retry)
        outcome = await self._attempt(ask)
        while (delay_s := retries.delay_after(outcome)) is not None:
            if self._on_retry is not None:
                self._on_retry(outcome)
            await asyncio.sleep(delay_s)
            outcome = await self._attempt(ask)
        return retries.settle(outcome)

    async def _attempt(self, ask: Ask) -> Outcome:
        try:
            return await self._http.request(
                ask.method, ask.path, params=ask.params, content=ask.body, headers=ask.headers()
            )
        except httpx.RequestError as error:
            return error


def _credentials(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
