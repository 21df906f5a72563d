"""Answer requests that are cut off by shutdown with 503.

After --shutdown-timeout-s uvicorn cancels the requests in progress and answers them with a
bare 500, which tells clients not to retry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ShuttingDown
from service.http import problems


class ShutdownAnswer:
    """ASGI middleware: answer requests that are cancelled while the service drains with 503."""

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self.app = app
        self.draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def tracked(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, receive, tracked)
        except asyncio.CancelledError:
            if scope["type"] != "http" or began or not self.draining():
                raise
            error = ShuttingDown(
                "the service shut down before this request was done: send it again"
            )
            await problems.answer(scope, error)(scope, receive, send)
