"""Text for people."""

from __future__ import annotations

from service.client.plain import counted


def test_one_is_singular() -> None:
    assert [counted(n, "photo") for n in (0, 1, 2)] == ["0 photos", "1 photo", "2 photos"]
