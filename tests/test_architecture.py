"""The rules for imports between packages, checked in the source and in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICE_ITSELF = "import service.http.app, service.__main__"


@cache
def loaded_by(statement: str) -> frozenset[str]:
    """Return the names of all modules, and their packages, that a statement loads."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return frozenset(result.stdout.split())


@cache
def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """The import statements anywhere in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports_of(path: Path) -> set[str]:
    """Top-level names imported anywhere in a file."""
    found = set()
    for node in imports(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_service_loads_neither_torch_nor_the_other_packages() -> None:
    assert loaded_by(SERVICE_ITSELF).isdisjoint({"torch", "model", "export"})


def test_nothing_of_tracing_is_loaded_unless_asked_for() -> None:
    """FastAPI itself may load OpenTelemetry's bare interface."""
    loaded = loaded_by(SERVICE_ITSELF)
    assert "service.http.app" in loaded
    assert loaded.isdisjoint(
        {"opentelemetry.sdk", "opentelemetry.exporter", "service.http.telemetry.tracing"}
    )


def test_the_client_loads_httpx_and_nothing_heavy() -> None:
    heavy = {"numpy", "PIL", "pydantic", "fastapi", "onnxruntime", "torch"}
    assert loaded_by("import service.client, service.client.cli").isdisjoint(heavy)


@pytest.mark.slow
def test_a_checkpoint_is_loaded_without_pytorchs_compiler() -> None:
    """Importing it takes longer than reading the bundled checkpoint."""
    load = "import model; model.load('model/bundled/efficientnet-lite0-voc')"
    assert "torch._dynamo" not in loaded_by(load)


def test_training_loads_plotting_and_comparison_libraries_only_on_request() -> None:
    heavy = {"tensorboard", "torchvision", "segmentation_models_pytorch"}
    assert loaded_by("import model.train").isdisjoint(heavy)


# Which parts of its package a part may import from, besides itself. A part is a folder or a module
# at the package's top. Modules that only start a command are in COMMANDS. Those in FOR_ALL import
# nothing of the package; every part but the client may import them.
FOR_ALL = {"allow_list", "errors", "files", "logs", "pydantic_errors", "text"}
SERVICE = {
    "settings": set(),
    "inference": {"settings"},
    "images": {"inference", "settings"},
    "decoders": {"images", "inference"},
    "http": {"decoders", "images", "inference", "settings"},
    "rpc": {"inference", "settings"},
    "client": set(),
    "label_tools": {"client"},
    "scripts": set(),
    "launch": set(),
    "doctor": {"http", "inference", "settings"},
    "demo": {"launch", "settings"},
    "local": {"client", "doctor", "http", "inference", "settings"},  # the client names it as text
    "bench": {"launch", "client", "http", "images", "inference", "settings"},
    "cluster": {"client", "decoders", "doctor", "http", "images", "inference", "settings"},
}
MODEL = {
    "network": set(),
    "data": set(),
    "memory": set(),
    "arguments": {"data"},
    "checkpoint": {"network"},
    "convert": {"arguments", "checkpoint", "data", "network"},
    "weights": {"checkpoint", "convert", "data", "network"},
    "evaluate": {"arguments", "checkpoint", "data", "memory", "network"},
    "train": {"arguments", "checkpoint", "data", "evaluate", "memory", "network"},
    "curate": {"arguments", "checkpoint", "data", "evaluate", "memory", "network", "train"},
    "finish": {"arguments", "checkpoint", "data", "evaluate", "memory", "network"},
    "paper": {
        *("arguments", "checkpoint", "data", "evaluate", "memory", "network", "pretrain"),
        "train",
    },
    "start": {"data", "memory", "network", "train"},
    "pretrain": {"arguments", "checkpoint", "data", "memory", "network", "train"},
    "bench": {"checkpoint", "data", "memory", "network", "train"},
}
COMMANDS = {
    "service": {"__main__", "label_studio", "ray_batch", "ray_serve"},
    "model": {
        "audit",
        "average",
        "complexity",
        "predict",
        "prior",
        "rank",
        "recalibrate",
        "report",
        "reproduce",
        "studies",
        "temperature",
    },
}


def parts_imported(package: str, path: Path) -> set[str]:
    """Return the parts of its own package that a file imports from."""
    found = set()
    for node in imports(path):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module == package:
            found |= {alias.name for alias in node.names}
        elif node.module.startswith(f"{package}."):
            found.add(node.module.split(".")[1])
    return found


PACKAGES = [("service", SERVICE), ("model", MODEL)]


@pytest.mark.parametrize(("package", "allowed"), PACKAGES)
def test_parts_import_only_from_the_parts_listed(
    package: str, allowed: dict[str, set[str]]
) -> None:
    for path in (ROOT / package).rglob("*.py"):
        part = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if part in {"__init__", *COMMANDS[package]}:
            continue
        shared = FOR_ALL if part != "client" else set()
        assert parts_imported(package, path) - shared <= {part, *allowed.get(part, ())}, path
        assert part not in FOR_ALL or parts_imported(package, path) <= {part}, path


@pytest.mark.parametrize(("package", "allowed"), PACKAGES)
def test_the_list_of_allowed_imports_has_no_cycle(
    package: str, allowed: dict[str, set[str]]
) -> None:
    order = TopologicalSorter(allowed)
    assert set(order.static_order()) == set(allowed)  # raises CycleError for a cycle


def test_nothing_imports_a_command() -> None:
    """They are entry points: `model.predict`, imported, would hide the function of that name."""
    commands = {
        f"{package}.{name}" for package, names in COMMANDS.items() for name in names - {"__main__"}
    }
    for package in ("annotations", "pixels", "postprocess", "model", "export", "service"):
        for path in (ROOT / package).rglob("*.py"):
            for node in imports(path):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
                    assert commands.isdisjoint(names), path


def test_library_code_is_not_kept_in_a_command() -> None:
    """Scripts and studies may import the command from a `__main__`, but nothing else."""
    for package in ("annotations", "pixels", "postprocess", "model", "export", "service", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            if "__main__" not in path.read_text(encoding="utf-8"):
                continue
            for node in imports(path):
                if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("__main__"):
                    assert {each.name for each in node.names} <= {"main", "script"}, path


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("annotations", {"model", "service", "export", "torch", "onnx"}),
        ("pixels", {"annotations", "postprocess", "model", "service", "export", "torch", "onnx"}),
        ("postprocess", {"model", "service", "export", "torch", "onnx", "pydantic"}),
        ("model", {"service", "export"}),
        ("service", {"model", "export", "torch", "onnx"}),
    ],
)
def test_dependencies_run_one_way(package: str, forbidden: set[str]) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert imports_of(path).isdisjoint(forbidden), path


@pytest.mark.parametrize("part", ["pixels", "postprocess", "service/images", "service/inference"])
def test_pixels_masks_and_inference_know_no_http(part: str) -> None:
    web = {"fastapi", "starlette", "uvicorn", "httpx"}
    for path in (ROOT / part).glob("*.py"):
        assert imports_of(path).isdisjoint(web), path


def test_inference_knows_no_images() -> None:
    for path in (ROOT / "service" / "inference").glob("*.py"):
        assert "PIL" not in imports_of(path), path


def test_the_batcher_does_not_know_the_engine() -> None:
    assert "onnxruntime" not in imports_of(ROOT / "service" / "inference" / "batcher.py")


def test_no_file_is_named_after_a_library() -> None:
    libraries = {"onnx", "json", "torch", "fastapi", "httpx", "pydantic", "numpy", "PIL"}
    for package in ("annotations", "pixels", "postprocess", "model", "export", "service"):
        assert libraries.isdisjoint(path.stem for path in (ROOT / package).rglob("*.py"))
