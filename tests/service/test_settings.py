"""`--help` of the service: what each setting does, its unit and its default, in words."""

from __future__ import annotations

import re

import pytest

from service.settings import Settings, from_command_line

FIELDS = Settings.model_fields
NOTHING = ("none", "no", "one per CPU", "only on", "only the service's", "the first")


def test_help_shows_no_types_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting has a line with its complete description."""
    with pytest.raises(SystemExit) as stopped:
        from_command_line(Settings, ["--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert not re.search(r"\b(tuple|Path|str|int|float|null|None)\b|\(\)", shown)
    for name, field in FIELDS.items():
        assert f"--{name.replace('_', '-')} " in shown
        assert str(field.description) in shown


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"models"}))
def test_the_default_in_the_help_is_the_default(name: str) -> None:
    found = re.fullmatch(r".*\(default: (.*)\)", str(FIELDS[name].description))
    assert found is not None
    said, default = found[1], FIELDS[name].default
    first = re.split("[,;]", said)[0]
    if default in {None, ()} or default is False:
        assert first.startswith(NOTHING)
    elif isinstance(default, str):
        assert first == default
    elif isinstance(default, tuple):
        assert first == ",".join(map(str, default))
    else:
        assert float(first) == default


def test_flags_take_precedence_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAB_MAX_FILES", "3")
    monkeypatch.setenv("DEEPLAB_GPUS", "1,2")
    settings = from_command_line(Settings, ["--max-files", "5", "--cors-origins", "https://a.b"])
    assert (settings.max_files, settings.gpus) == (5, (1, 2))
    assert settings.cors_origins == ("https://a.b",)
