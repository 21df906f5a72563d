"""Read text files that people write: lists, recipes, class names, descriptions."""

from __future__ import annotations

import codecs
from pathlib import Path

# The marks that Windows' editors put first, longest first: UTF-32's begins like UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class TextError(ValueError):
    """A file is not text; the message names it and says what to do."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in the encoding of its byte order mark.

    Raises TextError, with the file's name, for any other encoding.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not text in UTF-8 ({error}): save it as UTF-8") from None
    if "\0" in text:
        raise TextError(f"{path} holds zero bytes, as UTF-16 without a mark: save it as UTF-8")
    return text
