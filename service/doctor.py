"""`python -m service doctor`: report what is installed, what works, and what is wrong."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnxruntime as ort
from pydantic import ValidationError
from pydantic_settings import SettingsError

from service.errors import StartupError
from service.http.telemetry import gpu_memory
from service.inference import cpus, cuda, openvino_cpu, trt_engines
from service.inference.contract import ContractError
from service.inference.cuda import cuda_problem, preload
from service.inference.engine import CUDA, Engine
from service.inference.models import load_engines, model_files
from service.settings import Settings, wrong_settings

LIBRARIES = ("deeplab", "fastapi", "uvicorn", "numpy", "pillow", "pydantic", "pycocotools")
WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")


def main(argv: list[str]) -> int:
    """Print the report. Return 0 when nothing is wrong, 1 otherwise, 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        "python -m service doctor",
        description=__doc__,
        epilog="example: python -m service doctor --models exported/ --json",
    )
    parser.add_argument(
        "--models",
        type=Path,
        help="folder with .onnx files (default: the one the service would use)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    report = examine(options.models)
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 1 if report["problems"] else 0


def examine(folder: Path | None) -> dict[str, Any]:
    """Collect everything that matters for serving, and a list of `problems`.

    Reads the settings from the environment as the service does; `folder` replaces
    the folder of models.
    """
    wheels = installed_wheels(distributions())
    settings, wrong = _settings(folder)
    models, problems = _models(settings)
    problems = [*wrong, *problems]
    if problem := wheel_problem(wheels):
        problems.insert(0, problem)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "folder": str(settings.models),
        "device": settings.device,
        "cpus": cpus.available(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "onnxruntime": {
            "version": ort.__version__,
            "wheels": wheels,
            "compiled_in": ort.get_available_providers(),  # the models say which one is used
            "cuda": _cuda(),
            "driver": _driver(),
            "tensorrt": trt_engines.problem() or "works",
        },
        "openvino": openvino_cpu.problem() or version("openvino"),
        "gpus": _gpus(),
        "models": models,
        "problems": problems,
    }


def installed_wheels(found: Iterable[Distribution]) -> dict[str, str]:
    """Return the installed wheels that contain ONNX Runtime: name -> version."""
    versions = {str(each.metadata["Name"]).lower(): each.version for each in found}
    return {name: versions[name] for name in WHEELS if name in versions}


def wheel_problem(wheels: dict[str, str]) -> str | None:
    """Report two ONNX Runtime wheels: they share a folder and overwrite each other."""
    if len(wheels) < 2:
        return None
    return (
        f"{' and '.join(wheels)} are both installed and overwrite each other: "
        f"pip uninstall -y {' '.join(wheels)}, then install one extra, cpu, gpu or gpu-cu12"
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cuda() -> str:
    if CUDA not in ort.get_available_providers():
        return "not compiled in; install the gpu or gpu-cu12 extra to use a GPU"
    preload()
    return cuda_problem() or "works"


def _driver() -> str:
    """The NVIDIA driver, and the image that fits it best."""
    found = cuda.found_cuda()
    return "none found" if found is None else cuda.driver_advice(found)


def _gpus() -> list[str]:
    if find_spec("pynvml") is None:
        return ["unknown: nvidia-ml-py is not installed; it comes with the gpu extra"]
    library = gpu_memory.nvml()
    if library is None:
        return []
    try:
        return gpu_memory.gpus(library)
    except library.NVMLError as error:  # a GPU may fall off the bus
        return [f"cannot be read: {error}"]


def _settings(folder: Path | None) -> tuple[Settings, list[str]]:
    """Read the settings from the environment; on errors return the defaults and the errors."""
    problems = []
    try:
        settings = Settings()
    except (ValidationError, SettingsError) as error:
        settings = Settings.model_construct()
        problems.append(f"settings in DEEPLAB_* variables: {wrong_settings(error)}")
    return settings.model_copy(update={"models": folder or settings.models}), problems


def _models(settings: Settings) -> tuple[list[dict[str, Any]], list[str]]:
    """Load every model; return a description of each, and the errors of those that fail."""
    try:
        files = model_files(settings.models)
    except StartupError as error:
        return [], [str(error)]
    models, problems = [], []
    for path in files:
        try:
            engine, *_ = load_engines(path, settings)
            engine.warm_up(1)
        except (StartupError, ContractError) as error:
            problems.append(str(error))
        else:
            models.append(_describe(path, engine))
    return models, problems


def _describe(path: Path, engine: Engine) -> dict[str, Any]:
    height, width = engine.input_size
    return {
        "name": engine.name,
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "digest": engine.digest,
        "runs_on": engine.provider,
        "computes_in": engine.execution_precision,
        "classes": len(engine.contract.classes),
        "input": f"{width} x {height}",
        "precision": engine.contract.precision,
        "confidence": engine.contract.confidence,
    }


def as_text(report: dict[str, Any]) -> str:
    """Format the report as text: facts, then problems."""
    runtime = report["onnxruntime"]
    facts = [
        ("python", f"{report['python']} on {report['platform']}, {report['cpus']} CPUs allowed"),
        ("libraries", ", ".join(f"{name} {ver}" for name, ver in report["libraries"].items())),
        ("onnxruntime", ", ".join(f"{name} {ver}" for name, ver in runtime["wheels"].items())),
        ("compiled in", ", ".join(runtime["compiled_in"])),
        ("cuda", runtime["cuda"]),
        ("driver", runtime["driver"]),
        *(("gpu", gpu) for gpu in report["gpus"] or ["none found by the NVIDIA driver"]),
        ("tensorrt", runtime["tensorrt"]),
        ("openvino", report["openvino"]),
        ("models", f"{report['folder']}, on --device {report['device']}"),
        *(("model", ", ".join(f"{k} {v}" for k, v in model.items())) for model in report["models"]),
    ]
    lines = [f"{name:12} {value}" for name, value in facts]
    wrong = [f"wrong: {problem}" for problem in report["problems"]]
    return "\n".join([*lines, "", *(wrong or ["nothing is wrong"])])


def check_runtime() -> None:
    """Raise StartupError if two ONNX Runtime wheels are installed."""
    if problem := wheel_problem(installed_wheels(distributions())):
        raise StartupError(problem)
