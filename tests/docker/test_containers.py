"""What the container tests do on a machine whose engine refuses to work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docker.containers import Engine, EngineMissing, skip_without

REFUSAL = "Error: runc create failed: error setting rlimit type 7: operation not permitted"


@pytest.fixture
def refusing(tmp_path: Path) -> Engine:
    """An engine that is installed, and neither builds nor starts anything."""
    command = tmp_path / "podman"
    command.write_text(f"#!/bin/sh\necho Trying to pull >&2\necho '{REFUSAL}' >&2\nexit 126\n")
    command.chmod(0o755)
    return Engine([str(command), "build"], [str(command), "run"], [str(command)])


def test_tests_are_skipped_with_the_words_of_an_engine_that_cannot_start(refusing: Engine) -> None:
    def starter() -> Engine:
        refusing.check_start(["--read-only"])
        return refusing

    with pytest.raises(pytest.skip.Exception, match=f"cannot start: {REFUSAL}"):
        skip_without(starter)


def test_an_engine_that_cannot_build_says_why(refusing: Engine) -> None:
    with pytest.raises(EngineMissing, match=f"cannot build: {REFUSAL}"):
        refusing.check_build()
