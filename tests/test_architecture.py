"""The house rules of imports, proven in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules that a statement loads in a new interpreter."""
    code = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def imports_of(path: Path) -> set[str]:
    """Top-level names imported anywhere in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_service_loads_neither_torch_nor_the_other_packages() -> None:
    assert loaded_by("import service.app, service.__main__").isdisjoint(
        {"torch", "model", "export"}
    )


def test_nothing_of_tracing_is_loaded_unless_asked_for() -> None:
    """FastAPI itself may load OpenTelemetry's bare interface."""
    code = "import sys, service.app, service.__main__; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    loaded = set(result.stdout.decode().split())
    assert "service.app" in loaded
    assert loaded.isdisjoint({"opentelemetry.sdk", "opentelemetry.exporter", "service.tracing"})


def test_the_client_loads_httpx_and_nothing_heavy() -> None:
    heavy = {"numpy", "PIL", "pydantic", "fastapi", "onnxruntime", "torch"}
    assert loaded_by("import service.client").isdisjoint(heavy)


def test_training_loads_what_draws_and_compares_only_when_asked() -> None:
    heavy = {"tensorboard", "torchvision", "segmentation_models_pytorch"}
    assert loaded_by("import model.train").isdisjoint(heavy)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("model", {"service", "export"}), ("service", {"model", "export", "torch", "onnx"})],
)
def test_dependencies_run_one_way(package: str, forbidden: set[str]) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert imports_of(path).isdisjoint(forbidden), path


def test_the_batcher_knows_neither_http_nor_the_engine() -> None:
    known = {"fastapi", "starlette", "uvicorn", "onnxruntime"}
    assert imports_of(ROOT / "service" / "batcher.py").isdisjoint(known)


def test_no_file_is_named_after_a_library() -> None:
    libraries = {"onnx", "json", "torch", "fastapi", "httpx", "pydantic", "numpy", "PIL"}
    for package in ("model", "export", "service"):
        assert libraries.isdisjoint(path.stem for path in (ROOT / package).rglob("*.py"))
