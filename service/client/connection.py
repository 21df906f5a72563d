"""Connect the command line to a service, or to one in this process, and choose its model."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from service.client import local
from service.client.batch import on_retry
from service.client.errors import StatusError, UsageError
from service.client.pace import Pace
from service.client.progress import Progress
from service.client.protocol import ModelInfo
from service.client.retry import Outcome, RetryPolicy
from service.client.route import shown
from service.client.transport import AsyncClient


@asynccontextmanager
async def connected(
    options: argparse.Namespace, pace: Pace, progress: Progress
) -> AsyncIterator[AsyncClient]:
    """Yield a client of the service, or of one in this process."""
    if not options.local:
        async with _service(options, pace, progress) as client:
            yield client
        return
    async with (
        local.transport(options.models, options.model, options.timeout) as transport,
        _service(options, pace, progress, transport) as client,
    ):
        yield client


def _service(
    options: argparse.Namespace,
    pace: Pace,
    progress: Progress,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncClient:
    throttle = on_retry(pace)
    told = False

    def heard(outcome: Outcome) -> None:
        nonlocal told
        throttle(outcome)
        if not told and not isinstance(outcome, httpx.Response):
            told = True
            reason = str(outcome) or type(outcome).__name__
            place, patience = shown(httpx.URL(options.url)), f"{options.give_up_after:g} s"
            progress.note(f"{place}: {reason} (trying for {patience}: --give-up-after)")

    return AsyncClient(
        options.url,
        api_key=options.api_key,
        timeout_s=options.timeout,
        retry=RetryPolicy(give_up_after_s=options.give_up_after),
        on_retry=heard,
        transport=transport,
    )


async def choose(client: AsyncClient, options: argparse.Namespace) -> ModelInfo | None:
    """Return the model to use, None if the service names no default.

    Raises UsageError if the service does not have the model, or if there is no service.
    """
    try:
        models = await client.models()
    except StatusError as error:
        if error.status != 404:
            raise
        raise _wrong_url(options.url) from error
    name = options.model
    if name is None:
        return next((model for model in models if model.default), None)
    for model in models:
        if model.name == name:
            return model
    raise UsageError(f"--model {name}: the service has {', '.join(model.name for model in models)}")


def _wrong_url(text: str) -> UsageError:
    """Return the error for a URL below which there is no `/models`."""
    url = httpx.URL(text)
    path = url.path.rstrip("/")
    told = f"URL {shown(url)}: GET {path}/models does not exist there"
    if not path:
        return UsageError(f"{told}: is this the service's port, or another program's?")
    return UsageError(
        f"{told}: the URL has a path, {path}; write http://HOST:PORT, or with the prefix "
        "under which a proxy serves it"
    )
