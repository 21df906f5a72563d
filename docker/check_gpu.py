"""Check a gpu image. Run it first on a new GPU host:

    docker run --rm --gpus all --entrypoint python deeplab:gpu docker/check_gpu.py

With --all it then measures the service for up to ten minutes and writes one JSON file; see
service/bench/gpu.py and docs/gpu.md. `--device cpu` tries that on a machine without a GPU.

ONNX Runtime loads NVIDIA's libraries as in the service. Then `ldd` resolves the CUDA provider
and all parts of CUDA and cuDNN against their folders. Only the driver's libcuda.so.1 may be
missing, as in a container without a GPU. If there is a driver, the first model also runs on
the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # the application, beside this folder

import onnxruntime as ort  # after `service`, which switches its telemetry off

from service.bench import gpu
from service.errors import StartupError
from service.images import imaging
from service.inference import cuda, trt_engines
from service.inference.engine import Engine, EngineOptions
from service.inference.models import model_files
from service.settings import SAMPLES, Settings

ROOT = Path(__file__).parents[1]
DRIVER = "libcuda.so.1"
MIN_AGREEMENT = 0.99  # share of equal labels: the GPU computes in TF32, the CPU does not
# The provider opens cuDNN and cuFFT at run time, so `ldd` does not report them.
WHEELS_BRING = {"libcublas", "libcublasLt", "libcudart", "libcudnn", "libcufft", "libcurand"}
CHECKPOINT = "efficientnet-lite0-voc"
PROVIDER = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"


def main(argv: Sequence[str] | None = None) -> int:
    """Print versions and results. Return 0 if the image is complete and nothing failed."""
    args = parser().parse_args(argv)
    show_versions()
    checked = 0 if args.device == "cpu" else check_image()
    if checked or not args.all:
        return checked
    if args.device == "cuda" and cuda.found_cuda() is None:
        print("--    --all needs a GPU; --device cpu tries the script without one")
        return 1
    return measure_all(args)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Check a gpu image, and measure the service on a GPU.")
    p.add_argument("--all", action="store_true", help="also measure the service")
    p.add_argument("--json", type=Path, default=Path("gpu.json"), help="file for the figures")
    p.add_argument("--model", type=Path, help="exported fp32 file; default: the first model")
    p.add_argument("--fp16", type=Path, metavar="FILE", help="the model exported as fp16; default: "
                   "export the bundled one, if torch is installed")  # fmt: skip
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    p.add_argument("--seconds", type=float, default=6.0, help="length of each load")
    p.add_argument("--budget", type=float, default=540.0, help="seconds after which no case begins")
    return p


def check_image() -> int:
    """Check the libraries, then the GPU. Return 0 if all is well."""
    if not PROVIDER.exists():
        print("FAIL  this onnxruntime has no CUDA provider: this is not a gpu image")
        return 1
    ort.preload_dlls()
    problems = library_problems(wheel_libraries())
    for problem in problems:
        print(f"FAIL  {problem}")
    if problems:
        return 1
    print("ok    all libraries are present, except the driver's")
    if cuda.found_cuda() is None:
        print(f"--    no {DRIVER}: start the container with --gpus all to check the GPU too")
        return 0
    return run_on_gpu()


def measure_all(args: argparse.Namespace) -> int:
    """Measure all cases and write their figures after each. Return 0 if nothing failed."""
    with tempfile.TemporaryDirectory() as folder:
        cases = tuple(all_cases(args, Path(folder)))
        options = gpu.GpuOptions(cases, args.seconds, args.budget)
        found = gpu.run(options, lambda figures: write(args.json, figures))
    for problem in found["problems"]:
        print(f"FAIL  {problem}")
    print(f"{args.json}: {len(found['cases'])} cases in {found['seconds']:.0f} s")
    return 1 if found["problems"] else 0


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures so far: whatever stops the script, they are kept."""
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def all_cases(args: argparse.Namespace, folder: Path) -> Iterator[gpu.Case]:
    """The files and devices that can be measured here; says which cannot."""
    fp32: Path = args.model or model_files(Settings().models)[0]
    yield gpu.Case(f"{args.device} fp32", fp32, args.device, "fp32")
    fp16 = args.fp16 or exported_fp16(folder)
    if fp16 is None:
        print("--    no fp16 file, and no torch to export one: give --fp16 FILE")
    else:
        yield gpu.Case(f"{args.device} fp16", fp16, args.device, "fp16")
    if args.device == "cpu":
        return
    if reason := trt_engines.problem():
        print(f"--    no TensorRT: {reason}")
        return
    yield gpu.Case("TensorRT fp32", fp32, "tensorrt", "fp32")
    yield gpu.Case("TensorRT fp16", fp32, "tensorrt", "fp16", trt_fp16=True)


def exported_fp16(folder: Path) -> Path | None:
    """The bundled checkpoint as an fp16 file; None where its exporter is not installed."""
    checkpoint = ROOT / "model" / "bundled" / CHECKPOINT
    if find_spec("torch") is None or not checkpoint.with_suffix(".json").exists():
        return None
    target = folder / f"{CHECKPOINT}-fp16.onnx"
    command = [sys.executable, "-m", "export", str(checkpoint), "-o", str(target)]
    subprocess.run([*command, "--precision", "fp16"], cwd=ROOT, check=True)
    return target


def show_versions() -> None:
    """Print the versions of everything that must be compatible."""
    print(f"onnxruntime {ort.__version__}, built for CUDA {ort.cuda_version or '(none)'}")
    for wheel in sorted(metadata.distributions(), key=lambda wheel: wheel.name):
        if wheel.name.startswith("nvidia-"):
            print(f"{wheel.name} {wheel.version}")
    found = cuda.found_cuda()
    print(f"driver: {'none' if found is None else cuda.driver_advice(found)}")


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
    if problem := cuda.cuda_problem():
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
    decoded = [
        imaging.decode(imaging.open_checked(path.read_bytes(), 10**8))
        for path in sorted(SAMPLES.glob("*.jpg"))
    ]
    return np.stack([imaging.fit(photo, engine.contract.input).pixels for photo in decoded])


if __name__ == "__main__":
    raise SystemExit(main())
