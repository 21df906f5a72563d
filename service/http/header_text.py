"""Encode any text as a header value, as in RFC 8187 if it is not plain ASCII."""

from __future__ import annotations

from urllib.parse import quote, unquote

MARK = "UTF-8''"


def encoded(text: str) -> str:
    """Return the text itself, or `UTF-8''` and the percent-encoded text."""
    plain = text.isascii() and text.isprintable() and text == text.strip()
    return text if plain and not text.startswith(MARK) else MARK + quote(text, safe="")


def decoded(value: str) -> str:
    """Decode a header value."""
    return unquote(value.removeprefix(MARK)) if value.startswith(MARK) else value
