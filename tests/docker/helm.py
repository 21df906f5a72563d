"""Render and check a chart with Helm's own engine. Call these in a process of their own.

The engine is a library in Go, whose runtime replaces the process's handlers of SIGPIPE and SIGSEGV.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render(chart: Path, values: dict[str, Any], name: str) -> dict[str, str]:
    """Return the text of each template of a release, by its file."""
    import helm_python  # here, for this file is imported by the tests too

    with helm_python.Chart.load(chart) as loaded:
        files: dict[str, str] = loaded.render(values, name=name, namespace="default")
    return files


def lint(chart: Path) -> dict[str, Any]:
    """Return what `helm lint --strict` finds."""
    import helm_python  # here, for this file is imported by the tests too

    found: dict[str, Any] = helm_python.lint(chart, strict=True)
    return found
