"""Make text from other sources safe for terminals, tables and SQLite."""

from __future__ import annotations

import json
import re
from typing import Any

# C0 and C1 controls move the cursor, clear the screen or retitle the window; U+2028 to U+202E and
# U+2066 to U+2069 break lines and turn the reading direction; a lone surrogate is no UTF-8.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Characters that start a formula in a spreadsheet, with their full-width forms (OWASP, "CSV
# Injection").
FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
LONGEST = 500  # characters of a message


def plain(text: object) -> str:
    r"""Return one printable line: control characters and lone surrogates as `\x1b`, `\u202e`."""
    return UNPRINTABLE.sub(_escaped, str(text))


def sentence(text: object) -> str:
    """Like `plain`, cut to the length of a message."""
    line = plain(text)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def cell(text: object) -> str:
    """Like `plain`, with an apostrophe in front if a spreadsheet would read it as a formula."""
    line = plain(text)
    return f"'{line}" if FORMULA.match(line) else line


def counted(count: int, noun: str) -> str:
    """Return `1 photo`, `2 photos`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def parse_json(content: bytes | str) -> Any:
    """Parse untrusted JSON; every error is a ValueError, also for NaN and Infinity."""
    try:
        return json.loads(content, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        raise ValueError(f"{text[:20]} is too large a number")
    return number
