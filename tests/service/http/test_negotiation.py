"""Tests of service/http/negotiation.py."""

from __future__ import annotations

import pytest

from service.errors import InvalidRequest
from service.http.negotiation import MAX_ACCEPT, output_for


def test_accept_header_at_the_limit_is_read_and_a_longer_one_refused() -> None:
    """4,096 characters of Accept are parsed; one more is a 400 that names the limit."""
    longest = "application/json," + "," * (MAX_ACCEPT - len("application/json,"))
    assert output_for(longest) == "json"
    with pytest.raises(InvalidRequest, match="4097 characters, the limit is 4096"):
        output_for(longest + ",")
