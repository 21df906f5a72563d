"""One client cannot take all slots."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.http.middleware.shares import Shares

Header = tuple[bytes, bytes]


def scope(address: str, headers: Sequence[Header] = (), method: str = "POST") -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": "/segment",
        "headers": list(headers),
        "client": (address, 5000),
        "state": {},
    }


class Gate:
    """An application whose requests wait for a gate, behind the middleware."""

    def __init__(self, most: int, *, by_key: bool = False) -> None:
        self.open = asyncio.Event()
        self.shares = Shares(self.answer, most, by_key=by_key)
        self.waiting: list[asyncio.Task[int]] = []

    async def answer(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await self.open.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def status(self, of: Scope) -> int:
        """Return the status of a request, 0 while it waits."""
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def call() -> int:
            await self.shares(of, receive, send)
            return int(sent[0]["status"])

        task = asyncio.create_task(call())
        done, _ = await asyncio.wait([task], timeout=0.05)
        if done:
            return task.result()
        self.waiting.append(task)
        return 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "same", "other"),
    [
        ("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"),
        ("2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1"),
    ],
)
def test_one_address_has_its_share_and_others_theirs(first: str, same: str, other: str) -> None:
    """The third request of a client gets 429, that of another is served; GET never counts."""

    async def run() -> None:
        gate = Gate(most=2)
        assert [await gate.status(scope(each)) for each in (first, same, first)] == [0, 0, 429]
        assert await gate.status(scope(other)) == 0
        assert await gate.status(scope(first, method="GET")) == 0
        gate.open.set()
        assert await asyncio.gather(*gate.waiting) == [200] * 4
        assert await gate.status(scope(first)) == 200  # the share is free again
        assert not gate.shares._in_progress

    asyncio.run(run())


def test_with_keys_the_share_is_of_the_key() -> None:
    """Many people behind one address have a share each."""
    ours, theirs = ([(b"authorization", b"Bearer " + key)] for key in (b"ours", b"theirs"))

    async def run() -> None:
        gate = Gate(most=1, by_key=True)
        assert await gate.status(scope("10.0.0.1", ours)) == 0
        assert await gate.status(scope("10.0.0.2", ours)) == 429
        assert await gate.status(scope("10.0.0.1", theirs)) == 0
        gate.open.set()
        await asyncio.gather(*gate.waiting)

    asyncio.run(run())
