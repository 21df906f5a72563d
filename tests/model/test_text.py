"""Text files are read in the encodings that editors save."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.convert import labels
from model.convert.accounting import ConvertError
from model.data.dataset import DatasetError
from model.data.pairs import read_names
from model.text import TextError, read_text
from model.train import recipe
from model.train.recipe import RecipeError

LATIN = "Stra\xdfe\n".encode("latin-1")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_every_byte_order_mark_of_windows_editors_is_understood(
    tmp_path: Path, encoding: str
) -> None:
    text = "Straße\nBaum\n"
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path = tmp_path / "classes.txt"
    path.write_bytes((mark + text).encode(encoding))
    assert read_text(path) == text.removeprefix(mark) or read_text(path) == text
    assert read_names(path) == ["Straße", "Baum"]
    assert labels.read(str(path)).classes == ("Straße", "Baum")


def test_other_text_is_refused_by_name_and_never_with_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(LATIN)
    for read, error in (
        (read_text, TextError),
        (read_names, DatasetError),
        (lambda p: labels.read(str(p)), ConvertError),
        (lambda p: recipe.read(str(p), []), RecipeError),
    ):
        with pytest.raises(error, match=r"odd\.txt is not text in UTF-8 .*save it as UTF-8"):
            read(path)


def test_utf16_without_a_byte_order_mark_is_refused_by_name(tmp_path: Path) -> None:
    """Read as UTF-8, it is text with a zero byte after each letter."""
    path = tmp_path / "classes.txt"
    path.write_bytes("cat\ndog\n".encode("utf-16-le"))
    with pytest.raises(TextError, match=r"classes\.txt holds zero bytes.*save it as UTF-8"):
        read_text(path)
