"""If the container engine does not work, the container tests are skipped with its message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docker import containers
from tests.docker.containers import Engine, EngineMissing, skip_without

REFUSAL = "Error: runc create failed: error setting rlimit type 7: operation not permitted"


@pytest.fixture
def refusing(tmp_path: Path) -> Engine:
    """An engine that is installed but can neither build nor start anything."""
    command = tmp_path / "podman"
    command.write_text(f"#!/bin/sh\necho Trying to pull >&2\necho '{REFUSAL}' >&2\nexit 126\n")
    command.chmod(0o755)
    return Engine([str(command), "build"], [str(command), "run"], [str(command)])


def test_tests_are_skipped_with_the_message_of_an_engine_that_cannot_start(
    refusing: Engine,
) -> None:
    def starter() -> Engine:
        refusing.check_start(["--read-only"])
        return refusing

    with pytest.raises(pytest.skip.Exception, match=f"cannot start: {REFUSAL}"):
        skip_without(starter)


def test_an_engine_that_cannot_build_says_why(refusing: Engine) -> None:
    with pytest.raises(EngineMissing, match=f"cannot build: {REFUSAL}"):
        refusing.check_build()


PODMAN = """#!/bin/sh
case " $* " in
    *" {refused} "*) echo "podman: first a warning" >&2; echo "{said}" >&2; exit 125 ;;
esac
"""


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Put a fake podman on the PATH as the only engine; it refuses one command."""
    cached = (containers.engine, containers.builder, containers.starter)

    def install(refused: str) -> None:
        command = tmp_path / "podman"
        command.write_text(PODMAN.format(refused=refused, said=REFUSAL))
        command.chmod(0o755)

    for each in cached:
        each.cache_clear()
    monkeypatch.setattr(containers, "SCRIPT", tmp_path / "container.sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    yield install
    for each in cached:
        each.cache_clear()


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        ("info", f"podman does not answer: {REFUSAL}"),
        ("build", f"the container engine cannot build: {REFUSAL}"),
        ("run", f"the container engine cannot start: {REFUSAL}"),
    ],
)
def test_tests_are_skipped_with_the_message_of_the_podman_on_the_path(
    podman: Callable[[str], None], refused: str, reason: str
) -> None:
    podman(refused)
    with pytest.raises(pytest.skip.Exception) as skipped:
        skip_without(lambda: containers.starter("--read-only"))
    assert str(skipped.value) == reason


def test_an_engine_that_works_is_used(podman: Callable[[str], None]) -> None:
    """Without a refusal the same podman is used, so the test above cannot pass by accident."""
    podman("nothing")
    assert isinstance(skip_without(lambda: containers.starter("--read-only")), Engine)
