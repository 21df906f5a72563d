"""An answer for requests that the end of the service cuts off.

Once --shutdown-timeout-s has passed, uvicorn cancels what is still in progress and answers
it with a bare 500, which tells a client not to try again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ShuttingDown
from service.http import problems


class Farewell:
    """ASGI middleware: a request cancelled while the service drains is answered with 503."""

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self.app = app
        self.draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            if scope["type"] != "http" or began or not self.draining():
                raise
            error = ShuttingDown("the service stopped before this was done: send it again")
            await problems.answer(scope, error)(scope, receive, send)
