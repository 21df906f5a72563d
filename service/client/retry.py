"""Decide when to retry a request, and when to give up.

Connections that fail, break or time out are retried, and 502, 503 and 504. 4xx is not, 429
included: the same request would be refused again, or a rate limit is reached. The delay
doubles with each try up to a cap, with full jitter (Brooker, "Exponential Backoff And Jitter",
AWS Architecture Blog, 2015), so that many clients do not return at the same instant.
Retry-After is a lower bound.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from service.client.errors import UnreachableError
from service.client.protocol import refusal, retry_after_s
from service.client.route import BAD_CERTIFICATE

RETRYABLE = frozenset({502, 503, 504})

Outcome = httpx.Response | httpx.RequestError


@dataclass(frozen=True)
class RetryPolicy:
    """The delays between tries, and when to give up."""

    first_s: float = 0.5  # upper bound of the first wait
    cap_s: float = 30.0  # upper bound of any wait, except for Retry-After
    give_up_after_s: float = 120.0  # from the first try; no wait ends later


class Retries:
    """The tries of one request."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy
        self.attempts = 0
        self._clock = clock
        self._chance = chance
        self._started = clock()

    def delay_after(self, outcome: Outcome) -> float | None:
        """Return the seconds until the next try, or None for no further try."""
        self.attempts += 1
        if not _is_transient(outcome):
            return None
        backoff = min(self.policy.cap_s, self.policy.first_s * 2 ** min(self.attempts - 1, 30))
        delay = self._floor(outcome) + self._chance() * backoff
        waited = self._clock() - self._started
        return delay if waited + delay <= self.policy.give_up_after_s else None

    def settle(self, outcome: Outcome) -> httpx.Response:
        """Return the last outcome if it is good; raises StatusError or UnreachableError."""
        if isinstance(outcome, httpx.Response):
            if outcome.is_success:
                return outcome
            raise refusal(outcome)
        reason = str(outcome) or type(outcome).__name__
        tries = "1 try" if self.attempts == 1 else f"{self.attempts} tries"
        raise UnreachableError(f"no answer after {tries}: {reason}") from outcome

    @staticmethod
    def _floor(outcome: Outcome) -> float:
        if isinstance(outcome, httpx.Response):
            return retry_after_s(outcome) or 0.0
        return 0.0


def was_not_taken(outcome: Outcome) -> bool:
    """Return whether a request surely had no effect: not sent, or refused by the service itself."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code == 503 and not is_of_a_proxy(refusal(outcome).code)
    return isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError)


def is_of_a_proxy(code: str) -> bool:
    """Return whether a problem is a proxy's: `unreachable` is the code in docs/deploy.md."""
    return code == "unreachable" or code.startswith("http-")


def _is_transient(outcome: Outcome) -> bool:
    if isinstance(outcome, httpx.Response):
        return outcome.status_code in RETRYABLE
    if BAD_CERTIFICATE in str(outcome):
        return False
    # "407 Proxy Authentication Required", "403 Forbidden": how a proxy refuses CONNECT.
    if isinstance(outcome, httpx.ProxyError) and re.match(r"4\d\d\b", str(outcome)):
        return False
    return isinstance(outcome, httpx.TransportError)
