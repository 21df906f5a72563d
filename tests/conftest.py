"""Keep `make test-fast` from importing files with slow tests only; print how a test process ended.

Importing Ray, schemathesis, torchvision and the rest takes each test process several seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

WHOLLY_SLOW = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.slow", re.MULTILINE)


def is_wholly_slow(path: Path) -> bool:
    return WHOLLY_SLOW.search(path.read_text(encoding="utf-8")) is not None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not collect a wholly slow file if `-m "not slow"` would deselect all its tests."""
    left_out = (
        config.option.markexpr == "not slow"
        and collection_path.match("test_*.py")
        and is_wholly_slow(collection_path)
    )
    return True if left_out else None  # None: let other plugins decide


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_testnodedown(node: Any, error: object) -> None:
    """Print the exit status of a lost test process, which pytest-xdist does not show."""
    if error:
        status = node.gateway._io.popen.wait(10)
        print(f"\n[{node.gateway.id}] exit status {status} (negative: the signal that ended it)")
