"""Decode base64 as programs write it: either alphabet, line breaks, no padding, `data:` URLs."""

from __future__ import annotations

import binascii

SPACES = b" \t\r\n"
URL_SAFE = bytes.maketrans(b"-_", b"+/")  # RFC 4648, section 5
STEP = 1 << 20  # characters decoded at a time, so that other threads can run in between
DATA_URL = b"data:"
LONGEST_PREFIX = 200  # of a data URL: media type and parameters


def from_base64(text: bytes) -> bytes:
    """Decode base64, or a data URL with base64; raises ValueError saying what is wrong."""
    if text[: len(DATA_URL)].lower() == DATA_URL:
        text = _after_prefix(text)
    plain = text.translate(URL_SAFE, SPACES).rstrip(b"=")
    if len(plain) % 4 == 1:
        raise ValueError("base64 of a wrong length: it may be cut off")
    plain += b"=" * (-len(plain) % 4)
    steps = range(0, len(plain), STEP)
    try:
        return b"".join(
            binascii.a2b_base64(plain[at : at + STEP], strict_mode=True) for at in steps
        )
    except binascii.Error:
        raise ValueError("not base64: a character of another alphabet") from None


def _after_prefix(text: bytes) -> bytes:
    """Return what follows `data:image/jpeg;base64,`."""
    comma = text.find(b",", 0, LONGEST_PREFIX)
    if comma < 0 or not text[:comma].lower().rstrip().endswith(b";base64"):
        raise ValueError("a data URL must be of the form data:image/jpeg;base64,...")
    return text[comma + 1 :]
