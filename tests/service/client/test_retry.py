from __future__ import annotations

import httpx
import pytest

from service.client.errors import StatusError, UnreachableError
from service.client.retry import Outcome, Retries, RetryPolicy


def retries(policy: RetryPolicy | None = None, chance: float = 1.0, now: float = 0.0) -> Retries:
    return Retries(policy or RetryPolicy(), clock=lambda: now, chance=lambda: chance)


def answer(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize("status", [502, 503, 504])
def test_overload_and_gateways_are_tried_again(status: int) -> None:
    assert retries().delay_after(answer(status)) is not None


@pytest.mark.parametrize("status", [200, 400, 401, 404, 413, 415, 422, 429, 500])
def test_every_other_answer_is_final(status: int) -> None:
    assert retries().delay_after(answer(status, Retry_After="1")) is None


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.RemoteProtocolError("cut")],
)
def test_broken_connections_are_tried_again(error: httpx.TransportError) -> None:
    assert retries().delay_after(error) is not None


def test_wait_doubles_up_to_the_cap() -> None:
    tries = retries(RetryPolicy(first_s=1, cap_s=5, give_up_after_s=100))
    assert [tries.delay_after(answer(502)) for _ in range(5)] == [1, 2, 4, 5, 5]


def test_jitter_spreads_waits_over_the_whole_range() -> None:
    assert retries(chance=0.0).delay_after(answer(502)) == 0.0
    assert retries(chance=0.5).delay_after(answer(502)) == 0.25


def test_retry_after_is_the_minimum_wait() -> None:
    assert retries(chance=0.0).delay_after(answer(503, Retry_After="7")) == 7.0
    assert retries(chance=1.0).delay_after(answer(503, Retry_After="7")) == 7.5


def test_no_wait_exceeds_give_up_after() -> None:
    policy = RetryPolicy(give_up_after_s=10)
    assert retries(policy).delay_after(answer(503, Retry_After="11")) is None
    clock = iter([0.0, 9.9])
    late = Retries(policy, clock=lambda: next(clock), chance=lambda: 1.0)
    assert late.delay_after(answer(502)) is None


def test_last_outcome_becomes_a_typed_error() -> None:
    cut: Outcome = httpx.RemoteProtocolError("cut")
    with pytest.raises(UnreachableError, match="cut"):
        retries().settle(cut)
    with pytest.raises(StatusError, match="503"):
        retries().settle(answer(503))
