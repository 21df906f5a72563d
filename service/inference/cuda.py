"""CUDA: load NVIDIA's libraries, say why they cannot be used, and fall back to the CPU."""

from __future__ import annotations

import ctypes
import io
import logging
from contextlib import redirect_stdout
from pathlib import Path

import onnxruntime as ort

from service.errors import StartupError

log = logging.getLogger("service.engine")


def preload() -> None:
    """Load the libraries in NVIDIA's wheels, which are not on the loader's path."""
    with redirect_stdout(io.StringIO()) as said:  # it prints what is missing, between our log lines
        ort.preload_dlls()
    if said.getvalue():
        log.debug("%s", said.getvalue().strip())


def cuda_problem() -> str | None:
    """Return what is missing or too old for CUDA, or None if it loads."""
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1); on a GPU host, start the container with --gpus all"
    if problem := driver_problem(driver):
        return problem
    try:
        ctypes.CDLL(
            str(library.with_name("libonnxruntime_providers_shared.so")), ctypes.RTLD_GLOBAL
        )
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"ONNX Runtime's CUDA provider does not load: {error}"
    return None


def driver_problem(driver: ctypes.CDLL) -> str | None:
    """Return why this driver is too old, or None. Only CUDA's major version matters."""
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    needed = int((ort.cuda_version or "0").partition(".")[0])
    if version.value // 1000 >= needed:
        return None
    offered = f"{version.value // 1000}.{version.value % 1000 // 10}"  # as 12040 for 12.4
    return (
        f"the NVIDIA driver is too old: it supports CUDA {offered}, and this onnxruntime "
        f"needs CUDA {needed}; update the driver"
    )


def fall_back(device: str, reason: str, *, expected: bool = False) -> None:
    """Log that the CPU serves instead; raises StartupError unless `device` is auto.

    `expected`: this installation has no CUDA, which is worth no warning.
    """
    if device != "auto":
        raise StartupError(f"--device {device}: {reason}; --device auto serves on the CPU instead")
    log.log(logging.INFO if expected else logging.WARNING, "serving on the CPU: %s", reason)


def cuda_options(gpu: int, memory_limit_mb: int) -> dict[str, str]:
    """Provider options that keep first requests fast and memory from growing; limit 0: none."""
    chosen = {
        "device_id": str(gpu),
        "cudnn_conv_algo_search": "HEURISTIC",  # exhaustive search stalls each new shape
        "arena_extend_strategy": "kSameAsRequested",  # growth by need, not by doubling
        "cudnn_conv_use_max_workspace": "0",
        "do_copy_in_default_stream": "1",
    }
    if memory_limit_mb:
        chosen["gpu_mem_limit"] = str(memory_limit_mb * 1024 * 1024)
    return chosen
