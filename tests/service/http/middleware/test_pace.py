"""A flood of refused requests, or of pages, is answered slowly; nothing else is delayed."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.http.middleware import pace
from service.http.middleware.limits import BODY_BYTES
from service.http.middleware.pace import LARGE, MOST_S, PAGES, Pace, Paced
from service.http.middleware.shutdown import ShutdownAnswer


def scope(method: str = "POST", length: int = 0) -> Scope:
    headers = [(b"content-length", str(length).encode())]
    return {"type": "http", "method": method, "path": "/segment", "headers": headers}


async def receive() -> Message:
    return {"type": "http.disconnect"}


class Application:
    """An application that answers with one status; it notes when its requests end."""

    def __init__(self, status: int, body_bytes: int = 0) -> None:
        self.status = status
        self.body_bytes = body_bytes
        self.ended = 0

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        scope[BODY_BYTES] = self.body_bytes
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})
        self.ended += 1


async def waited_s(paced: Paced, of: Scope) -> float:
    """Return how long an answer took; it must be complete."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    began = time.monotonic()
    await paced(of, receive, send)
    assert b"".join(each.get("body", b"") for each in sent) == b"ab"
    return time.monotonic() - began


def test_few_refusals_are_answered_at_once() -> None:
    of_ten = Pace(per_s=10)
    assert [of_ten.wait_s() for _ in range(10)] == [0.0] * 10


def test_more_are_answered_at_the_rate_and_none_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    of_ten = Pace(per_s=10)
    waits = [of_ten.wait_s() for _ in range(110)]
    assert waits[:10] == pytest.approx([0.0] * 10, abs=1e-9)
    assert waits[10:30] == pytest.approx([0.1 * (n + 1) for n in range(20)])
    assert waits[30:] == pytest.approx([MOST_S] * 80)
    now += 60.0
    assert of_ten.wait_s() == 0.0


def test_a_request_counts_as_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    of_ten = Pace(per_s=10)
    assert of_ten.wait_s(10) == pytest.approx(0.0)
    assert of_ten.wait_s(5) == pytest.approx(0.5)


def test_no_rate_is_no_limit() -> None:
    at_once = Pace(0)
    assert not any(at_once.wait_s(2**30) for _ in range(1000))


@pytest.mark.parametrize("body_bytes", [0, 3 * 2**20])
def test_a_refused_request_ends_before_its_answer_is_sent(
    monkeypatch: pytest.MonkeyPatch, body_bytes: int
) -> None:
    """So it holds neither memory nor a slot while its answer waits."""
    monkeypatch.setattr(pace, "AT_ONCE_S", 0.0)
    application = Application(503, body_bytes)
    paced = Paced(application, refusals_per_s=10)

    async def main() -> None:
        task = asyncio.create_task(waited_s(paced, scope()))
        await asyncio.sleep(0.02)
        assert application.ended == 1
        assert not task.done()
        assert await task >= 0.09 * (1 + body_bytes / 2**20)

    asyncio.run(main())


CHUNKED = (b"transfer-encoding", b"chunked")


@pytest.mark.parametrize(
    ("of", "waits"),
    [
        (scope(length=LARGE), False),
        (scope(length=LARGE + 1), True),
        ({**scope(), "headers": [CHUNKED]}, True),
    ],
)
def test_large_bodies_are_not_read_while_refusals_wait(
    monkeypatch: pytest.MonkeyPatch, of: Scope, waits: bool
) -> None:
    """Nor does their time begin: the deadline of a request and that of its body are inside."""
    monkeypatch.setattr(pace, "AT_ONCE_S", 0.0)

    async def reading(_scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(0.1):
            await receive()
        await Application(200)({}, receive, send)

    refused = Application(503)

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        await (refused if scope["path"] == "/refused" else reading)(scope, receive, send)

    paced = Paced(either, refusals_per_s=2)

    async def main() -> float:
        refusal = asyncio.create_task(waited_s(paced, {**scope(), "path": "/refused"}))
        await asyncio.sleep(0.01)
        waited = await waited_s(paced, of)
        await refusal
        return waited

    assert (asyncio.run(main()) > 0.2) == waits  # half of half a second


def test_few_requests_wait_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait hold connections, which others need."""
    monkeypatch.setattr(pace, "AT_ONCE_S", 0.0)
    monkeypatch.setattr(pace, "MOST_WAITING", 3)
    paced = Paced(Application(503), refusals_per_s=2)

    async def main() -> list[float]:
        return await asyncio.gather(*(waited_s(paced, scope()) for _ in range(6)))

    assert [waited > 0.2 for waited in asyncio.run(main())] == [True] * 3 + [False] * 3


def test_pages_that_wait_let_no_refusals_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "AT_ONCE_S", 0.0)
    monkeypatch.setattr(pace, "MOST_WAITING", 3)
    paced = Paced(Application(503), refusals_per_s=2)

    async def main() -> list[float]:
        page = {**scope("GET"), "path": "/"}
        return await asyncio.gather(*(waited_s(paced, of) for of in [*[page] * 6, scope()]))

    assert asyncio.run(main())[-1] > 0.2


def test_a_refusal_that_waits_at_the_end_of_the_service_is_still_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "AT_ONCE_S", 0.0)
    paced = Paced(Application(503), refusals_per_s=0.5)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        answer = ShutdownAnswer(paced, draining=lambda: True)
        task = asyncio.create_task(answer(scope(), receive, send))
        await asyncio.sleep(0.02)
        task.cancel()
        await task

    asyncio.run(main())
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["code"] == "shutting-down"


def test_pages_are_answered_slowly_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "AT_ONCE_S", 0.0)
    paced = Paced(Application(200), refusals_per_s=5)

    async def main() -> None:
        page = {**scope("GET"), "path": "/"}
        assert 0.9 < await waited_s(paced, page) * 5 * PAGES < 5
        assert await waited_s(paced, {**page, "path": "/metrics"}) > 9 / 5 / PAGES

    asyncio.run(main())


def test_the_private_port_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a flood of requests for pages does not leave its operator without metrics."""
    monkeypatch.setattr(pace, "AT_ONCE_S", 0.0)
    paced = Paced(Application(200), refusals_per_s=0.1, metrics_port=9464)
    of = {**scope("GET"), "path": "/metrics"}
    assert asyncio.run(waited_s(paced, {**of, "server": ("::1", 9464)})) < MOST_S / 2
    assert asyncio.run(waited_s(paced, {**of, "server": ("::1", 8000)})) > MOST_S / 2


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v2/health/live", "/v2/models/m/ready"])
def test_a_probe_never_waits(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Not even one that fails: an orchestrator would end a service that answers too late."""
    monkeypatch.setattr(pace, "AT_ONCE_S", 0.0)
    paced = Paced(Application(503), refusals_per_s=0.1)
    assert asyncio.run(waited_s(paced, {**scope("GET"), "path": path})) < MOST_S / 2


@pytest.mark.parametrize("status", [200, 302])
def test_what_succeeds_does_not_wait(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(pace, "AT_ONCE_S", 0.0)
    paced = Paced(Application(status), refusals_per_s=0.1)
    assert asyncio.run(waited_s(paced, scope())) < MOST_S / 2
