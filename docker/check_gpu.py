"""Check the gpu image. Run it first on a new GPU host:

    docker run --rm --gpus all --entrypoint python deeplab:gpu docker/check_gpu.py

ONNX Runtime loads NVIDIA's libraries as in the service. Then `ldd` resolves the CUDA provider
and all parts of CUDA and cuDNN against their folders. Only the driver's libcuda.so.1 may be
missing, as in a container without a GPU. If there is a driver, the first model also runs on
the GPU.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # the application, beside this folder

import onnxruntime as ort  # after `service`, which switches its telemetry off

from service.errors import StartupError
from service.images import imaging
from service.inference.cuda import cuda_problem
from service.inference.engine import Engine, EngineOptions
from service.inference.models import model_files
from service.settings import Settings

DRIVER = "libcuda.so.1"
MIN_AGREEMENT = 0.99  # share of equal labels: the GPU computes in TF32, the CPU does not
# The provider opens cuDNN and cuFFT at run time, so `ldd` does not report them.
WHEELS_BRING = {"libcublas", "libcublasLt", "libcudart", "libcudnn", "libcufft", "libcurand"}
PHOTOS = sorted((Path(__file__).parents[1] / "service" / "samples").glob("*.jpg"))
PROVIDER = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"


def main() -> int:
    """Print versions and results. Return 0 if the image is complete."""
    show_versions()
    if not PROVIDER.exists():
        print("FAIL  this onnxruntime has no CUDA provider: this is not the gpu image")
        return 1
    ort.preload_dlls()
    problems = library_problems(wheel_libraries())
    for problem in problems:
        print(f"FAIL  {problem}")
    if problems:
        return 1
    print("ok    all libraries are present, except the driver's")
    if not driver_version():
        print(f"--    no {DRIVER}: start the container with --gpus all to check the GPU too")
        return 0
    return run_on_gpu()


def show_versions() -> None:
    """Print the versions of everything that must be compatible."""
    print(f"onnxruntime {ort.__version__}, built for CUDA {ort.cuda_version or '(none)'}")
    for wheel in sorted(metadata.distributions(), key=lambda wheel: wheel.name):
        if wheel.name.startswith("nvidia-"):
            print(f"{wheel.name} {wheel.version}")
    print(f"driver: {driver_version() or 'none'}")


def driver_version() -> str | None:
    """Return the newest CUDA version that the driver supports, or None without a driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL(DRIVER).cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return f"supports CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def wheel_libraries() -> set[Path]:
    """Return the shared libraries of NVIDIA's wheels that this process has loaded."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = {Path(line.split(maxsplit=5)[5]) for line in lines if "/" in line}
    return {path for path in files if "nvidia" in path.parts and ".so" in path.name}


def library_problems(loaded: set[Path]) -> list[str]:
    """Return what is missing, given the libraries that ONNX Runtime has loaded."""
    names = {path.name.partition(".")[0] for path in loaded}
    problems = [f"{name} was not loaded" for name in sorted(WHEELS_BRING - names)]
    folders = {path.parent for path in loaded}
    parts = {
        path for folder in folders for name in WHEELS_BRING for path in folder.glob(f"{name}*.so*")
    }
    return problems + [
        f"{library.name} needs {missing}, which is missing"
        for library in (PROVIDER, *sorted(parts))
        for missing in sorted(unresolved(library, folders) - {DRIVER})
    ]


def unresolved(library: Path, folders: set[Path]) -> set[str]:
    """Return the names that `ldd` cannot resolve for a library, searching `folders` too."""
    path = os.pathsep.join(map(str, sorted(folders)))
    report = subprocess.run(
        ["ldd", library],
        env={**os.environ, "LD_LIBRARY_PATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {line.split()[0] for line in report.splitlines() if line.endswith("not found")}


def run_on_gpu() -> int:
    """Run the first model on CUDA and compare it with the CPU. Return 0 on success."""
    if problem := cuda_problem():
        print(f"FAIL  {problem}")
        return 1
    try:
        path = model_files(Settings().models)[0]
        engine = Engine(path, EngineOptions(device="cuda"))
        images = samples(engine)
        labels = engine.run(images)
        equal = (labels == Engine(path, EngineOptions(device="cpu")).run(images)).mean()
    except (StartupError, RuntimeError) as error:
        print(f"FAIL  {error}")
        return 1
    print(f"ok    {engine.name} ran on {engine.provider}")
    verdict = "ok  " if equal >= MIN_AGREEMENT else "FAIL"
    print(f"{verdict}  {equal:.3%} of its labels agree with the CPU")
    return 0 if equal >= MIN_AGREEMENT else 1


def samples(engine: Engine) -> NDArray[np.uint8]:
    """Return the sample photos, fitted as in the service, (N, H, W, 3)."""
    decoded = [imaging.decode(imaging.open_checked(path.read_bytes(), 10**8)) for path in PHOTOS]
    return np.stack([imaging.fit(photo, engine.contract.input).pixels for photo in decoded])


if __name__ == "__main__":
    raise SystemExit(main())
