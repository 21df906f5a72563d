"""Measure the service on a GPU: load, memory, reloads and a kill. `docker/check_gpu.py --all`.

Each case is a model file on a device. The service runs in a process of its own and gets
photos over HTTP. Its masks are compared with those of ONNX Runtime on the CPU. Whatever
fails is noted in `problems`, and the other cases still run.
"""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from service import launch
from service.bench import vitals
from service.bench.generator import Load, LoadReport, measured
from service.bench.vitals import MIB
from service.http.telemetry import gpu_memory
from service.inference import cpus, cuda, trt_engines
from service.inference.engine import Device
from service.settings import SAMPLES

FORMAT = 1  # of the JSON
CONCURRENCY = (1, 16, 64)
MAX_REQUESTS = 2 * CONCURRENCY[-1]  # so that the service refuses no request
REQUEST_TIMEOUT_MS = 120_000  # the same as the load generator's timeout
MAX_BATCH = 4
RELOADS = 3
RELOAD_LOAD = 16
MAX_GROWTH_MIB = 64  # of GPU memory, after reloads
RELEASE_S = 20.0  # the driver frees the memory of a killed process within this time
# Share of labels that agree with the CPU: a GPU computes in TF32 or float16, the CPU does not.
MIN_AGREEMENT = {"fp32": 0.99, "fp16": 0.98}
SAMPLE_S = 0.2  # between two readings of GPU memory
FAILURES = (OSError, RuntimeError, SystemExit, httpx.HTTPError, subprocess.SubprocessError)

Figures = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model file on a device."""

    name: str
    file: Path
    device: Device
    precision: str  # of the computation: fp32 or fp16
    trt_fp16: bool = False


@dataclass(frozen=True)
class GpuOptions:
    """What to measure, and for how long."""

    cases: tuple[Case, ...]
    seconds: float = 6.0  # of each load
    budget_s: float = 540.0  # cases that would begin later are skipped
    photos: tuple[Path, ...] = tuple(sorted(SAMPLES.glob("*.jpg")))


@dataclass
class Memory:
    """Readings of GPU memory, in MiB; empty without a GPU."""

    used: list[float] = field(default_factory=list)

    @property
    def peak(self) -> float | None:
        """The highest reading."""
        return max(self.used, default=None)


def run(options: GpuOptions, note: Callable[[Figures], None]) -> Figures:
    """Measure all cases; `note` is called with all figures so far after each step."""
    began = time.monotonic()
    result: Figures = {
        "format": FORMAT,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "gpu": gpu(),
        "host": host(),
        "versions": versions(),
        "cases": [],
        "problems": [],
    }
    first = options.cases[0]
    steps: list[tuple[str, Callable[[], Figures]]] = [
        (each.name, lambda each=each: case_figures(each, options))  # type: ignore[misc]
        for each in options.cases
    ]
    steps.insert(1, ("reload", lambda: reload_figures(first, options)))
    steps.insert(2, ("kill", lambda: kill_figures(first, options)))
    for name, step in steps:
        print(f"{time.monotonic() - began:4.0f} s  {name}", flush=True)
        figures = _tried(step, options.budget_s - (time.monotonic() - began))
        if name in {"reload", "kill"}:
            result[name] = figures
        else:
            result["cases"].append({"name": name, **figures})
        result["problems"] += [f"{name}: {problem}" for problem in figures["problems"]]
        result["seconds"] = round(time.monotonic() - began, 1)
        note(result)
    return result


def _tried(step: Callable[[], Figures], left_s: float) -> Figures:
    """Run a step unless the time is over; record an error as a problem."""
    if left_s <= 0:
        return {"problems": ["not run: the time was over"]}
    try:
        return step()
    except FAILURES as error:
        return {"problems": [" ".join(str(error).split())[-500:] or type(error).__name__]}


def case_figures(case: Case, options: GpuOptions) -> Figures:
    """Run one case: start, compare masks, load it with several numbers of requests in flight."""
    found: Figures = {"file": case.file.name, "device": case.device, "precision": case.precision}
    found["gpu_mib_before"] = gpu_mib()
    with _folder(case) as folder:
        if case.device == "tensorrt":
            found["build_s"] = build(case, folder)
        began = time.monotonic()
        with _served(case, folder) as server:
            found["ready_s"] = round(time.monotonic() - began, 1)
            found |= compared(server.url, case, options.photos)
            found["loads"] = [load_figures(server, n, options) for n in CONCURRENCY]
            found["rss_mib"] = round(vitals.read(server.pid).rss_mib)
        found["exit_code"] = server.process.returncode
    found["problems"] = list(case_problems(case, found))
    return found


def case_problems(case: Case, found: Figures) -> Iterator[str]:
    """Describe the failed checks of a case."""
    wanted = {"cuda": "CUDA", "tensorrt": "Tensorrt", "cpu": "CPU"}[case.device]
    if not found["provider"].startswith(wanted):
        yield f"ran on {found['provider']}"
    if found["agreement"] < MIN_AGREEMENT[case.precision]:
        yield f"only {found['agreement']:.3%} of the labels agree with the CPU"
    for each in found["loads"]:
        if each["failures"]:
            yield f"{each['failures']} failures with {each['in_flight']} in flight"
    if found["exit_code"]:
        yield f"the service ended with code {found['exit_code']}"


def load_figures(server: launch.Server, n: int, options: GpuOptions) -> Figures:
    """Load a server with `n` requests in flight."""
    with _watched() as memory:
        report = _load(server, n, options)
    return {
        "in_flight": n,
        "photos_per_s": round(report.rate, 2),
        "latency_ms": round(report.latency_ms, 1),
        "infer_ms": round(report.stages_ms.get("infer", 0.0), 2),
        "cpu_ms": round(1000 * (report.server_cpu_s or 0.0) / report.answers, 2),
        "failures": report.failures,
        "gpu_mib_peak": memory.peak,
    }


def _load(server: launch.Server, n: int, options: GpuOptions) -> LoadReport:
    photos = tuple(map(str, options.photos))
    url = f"{server.url}/segment?output=mask"
    return measured(Load(url, photos, n, options.seconds, min(2.0, options.seconds), server.pid))


def reload_figures(case: Case, options: GpuOptions) -> Figures:
    """Reload the model while requests arrive: none may fail, and memory must not grow."""
    with _folder(case) as folder, _served(case, folder) as server:
        _load(server, RELOAD_LOAD, options)
        before, seconds, reports = gpu_mib(), [], []
        sender = threading.Thread(
            target=lambda: reports.append(_load(server, RELOAD_LOAD, options))
        )
        sender.start()
        for _ in range(RELOADS):
            began = time.monotonic()
            answer = httpx.post(
                f"{server.url}/models/{case.file.stem}/reload", timeout=120, trust_env=False
            )
            answer.raise_for_status()
            seconds.append(round(time.monotonic() - began, 2))
        sender.join()
        _load(server, RELOAD_LOAD, options)
        after = gpu_mib()
    failures = reports[0].failures if reports else None
    problems = [] if failures == 0 else [f"{failures} requests failed during the reloads"]
    if before is not None and after is not None and after > before + MAX_GROWTH_MIB:
        problems.append(f"GPU memory grew from {before} to {after} MiB")
    return {
        "reload_s": seconds,
        "failures": failures,
        "gpu_mib_before": before,
        "gpu_mib_after": after,
        "problems": problems,
    }


def kill_figures(case: Case, options: GpuOptions) -> Figures:
    """Kill the service under load: its GPU memory must be freed, and the next one must start."""
    before = gpu_mib()
    with _folder(case) as folder:
        with _served(case, folder) as server:
            sender = threading.Thread(target=_load_until_it_breaks, args=(server, options))
            sender.start()
            time.sleep(options.seconds / 2)
            server.process.kill()
            server.process.wait()
            released_s = _released(before)
            sender.join()
        began = time.monotonic()
        with _served(case, folder):
            ready_s = time.monotonic() - began
    lost = released_s is None
    problems = [f"GPU memory was not freed within {RELEASE_S:g} s of the kill"] if lost else []
    return {"released_s": released_s, "ready_again_s": round(ready_s, 1), "problems": problems}


def _load_until_it_breaks(server: launch.Server, options: GpuOptions) -> None:
    photos = tuple(map(str, options.photos))
    command = [sys.executable, "-m", "service.bench.generator"]
    command += [f"{server.url}/segment?output=mask", *photos, "--concurrency", "16"]
    command += ["--seconds", str(options.seconds)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)


def _released(before: float | None) -> float | None:
    """Wait until GPU memory is as low as before; return the seconds, or None if it stays."""
    began = time.monotonic()
    while (took := time.monotonic() - began) < RELEASE_S:
        now = gpu_mib()
        if before is None or now is None or now <= before + MAX_GROWTH_MIB:
            return round(took, 1)
        time.sleep(SAMPLE_S)
    return None


def build(case: Case, folder: Path) -> float:
    """Build the TensorRT engines of a case and return the seconds it took."""
    began = time.monotonic()
    command = [launch.python(), "-m", "service", "build-engines", "--models", str(folder)]
    built = subprocess.run(
        [*command, *trt_flags(case, folder)], capture_output=True, text=True, check=False
    )
    if built.returncode:
        raise RuntimeError(built.stderr)
    return round(time.monotonic() - began, 1)


def trt_flags(case: Case, folder: Path) -> list[str]:
    """Return the service's flags for TensorRT engines that are stored beside the model."""
    return trt_engines.TrtOptions(folder / "engines", MAX_BATCH, case.trt_fp16).flags


@contextmanager
def _folder(case: Case) -> Iterator[Path]:
    """Make a folder with only a case's model; it and its TensorRT engines last for the block."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(case.file, name)
        yield Path(name)


@contextmanager
def _served(case: Case, folder: Path) -> Iterator[launch.Server]:
    """Run the service on one case; if it does not start, raise RuntimeError with its log."""
    flags = ["--device", case.device, "--max-requests", str(MAX_REQUESTS)]
    flags += ["--request-timeout-ms", str(REQUEST_TIMEOUT_MS)]
    flags += trt_flags(case, folder) if case.device == "tensorrt" else []
    with tempfile.TemporaryFile() as log:
        try:
            with launch.service(folder, *flags, "--log-level", "warning", log=log) as server:
                yield server
        except SystemExit as ended:
            log.seek(0)
            said = log.read().decode("utf-8", "replace")
            raise RuntimeError(f"{ended}: {said}") from None


def compared(url: str, case: Case, photos: Sequence[Path]) -> Figures:
    """Compare the service's masks with those of ONNX Runtime on the CPU."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copy(case.file, name)).parent
        with launch.service(folder, "--device", "cpu", "--log-level", "error") as truth:
            expected = [mask(truth.url, photo)[0] for photo in photos]
    answers = [mask(url, photo) for photo in photos]
    equal = [(mine == other).mean() for (mine, _), other in zip(answers, expected, strict=True)]
    headers = answers[0][1]
    return {
        "provider": headers["X-Execution-Provider"],
        "runs_in": headers["X-Execution-Precision"],
        "agreement": round(float(np.mean(equal)), 5),
    }


def mask(url: str, photo: Path) -> tuple[NDArray[np.uint8], httpx.Headers]:
    """Request the mask of a photo: (H, W) class ids, and the answer's headers."""
    answer = httpx.post(
        f"{url}/segment?output=mask",
        content=photo.read_bytes(),
        headers={"Content-Type": "image/jpeg"},
        timeout=120,
        trust_env=False,
    )
    answer.raise_for_status()
    return np.asarray(Image.open(io.BytesIO(answer.content))), answer.headers


@contextmanager
def _watched() -> Iterator[Memory]:
    """Read GPU memory repeatedly while the block runs."""
    memory, over = Memory(), threading.Event()

    def watch() -> None:
        while (now := gpu_mib()) is not None:
            memory.used.append(now)
            if over.wait(SAMPLE_S):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield memory
    finally:
        over.set()
        watcher.join()


nvml = cache(gpu_memory.nvml)  # opened once: without a driver it warns


def gpu_mib() -> float | None:
    """GPU memory in use by all processes, in MiB; None without a GPU."""
    library = nvml()
    if library is None:
        return None
    memory = library.nvmlDeviceGetMemoryInfo(library.nvmlDeviceGetHandleByIndex(0))
    return float(round(memory.used / MIB))


def gpu() -> Figures | None:
    """Name, memory and driver of the first GPU; None without one."""
    library = nvml()
    if library is None or not library.nvmlDeviceGetCount():
        return None
    handle = library.nvmlDeviceGetHandleByIndex(0)
    newest = cuda.found_cuda() or 0
    return {
        "name": library.nvmlDeviceGetName(handle),
        "memory_mib": round(library.nvmlDeviceGetMemoryInfo(handle).total / MIB),
        "driver": library.nvmlSystemGetDriverVersion(),
        "driver_cuda": f"{newest // 1000}.{newest % 1000 // 10}",
    }


def host() -> Figures:
    """The processor and the system."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cpus": cpus.available(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Versions of everything that must be compatible."""
    found = {
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "onnxruntime built for CUDA": ort.cuda_version or "none",
    }
    wheels = sorted(metadata.distributions(), key=lambda wheel: str(wheel.name))
    relevant = ("nvidia-", "tensorrt", "onnxruntime")
    return found | {
        wheel.name: wheel.version for wheel in wheels if wheel.name.startswith(relevant)
    }
