"""Any text as the value of a header, in RFC 8187's form where it is not plain ASCII."""

from __future__ import annotations

from urllib.parse import quote, unquote

MARK = "UTF-8''"


def encoded(text: str) -> str:
    """The text itself, or `UTF-8''` and the text with percent signs."""
    plain = text.isascii() and text.isprintable() and text == text.strip()
    return text if plain and not text.startswith(MARK) else MARK + quote(text, safe="")


def decoded(value: str) -> str:
    """The text again."""
    return unquote(value.removeprefix(MARK)) if value.startswith(MARK) else value
