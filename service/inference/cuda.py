"""CUDA: load NVIDIA's libraries, say why they cannot be used, and fall back to the CPU.

Also says which image fits the driver of this host.
"""

from __future__ import annotations

import ctypes
import io
import logging
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort

from service.errors import StartupError

log = logging.getLogger("service.engine")


class Image(NamedTuple):
    """An image, and the extra of the same name."""

    name: str
    cuda: int  # the major version that its ONNX Runtime is built for
    driver: int  # the oldest branch of NVIDIA's Linux driver that supports it


# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
IMAGES = (Image("gpu", 13, 580), Image("gpu-cu12", 12, 525))  # newest first


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
    version = newest_cuda(driver)
    needed = int((ort.cuda_version or "0").partition(".")[0])
    if version // 1000 >= needed:
        return None
    return (
        f"the NVIDIA driver is too old: this onnxruntime needs CUDA {needed}, and the driver "
        f"{driver_advice(version)}"
    )


def newest_cuda(driver: ctypes.CDLL) -> int:
    """Return the newest CUDA that a driver supports, as NVIDIA writes it: 12040 for 12.4."""
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value


def found_cuda() -> int | None:
    """Return the newest CUDA that this host's driver supports, or None without a driver."""
    try:
        return newest_cuda(ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return None


def fitting_images(version: int) -> list[str]:
    """Return the images that a driver can run, the best first; `version` as in `newest_cuda`."""
    return [image.name for image in IMAGES if image.cuda <= version // 1000]


def driver_advice(version: int) -> str:
    """Say what a driver supports, and which image or else which driver to use."""
    supported = f"supports CUDA {version // 1000}.{version % 1000 // 10}"
    images = fitting_images(version)
    newer = [image for image in IMAGES if image.name not in images]
    steps = [f"use the {images[0]} image or extra"] if images else []
    # The best image needs no other driver.
    steps += [f"update the driver to {newer[-1].driver} or newer"] if newer else []
    return f"{supported}; {', or '.join(steps)}"


def not_compiled_in() -> str:
    """Say that this ONNX Runtime has no CUDA, and what to install."""
    found = found_cuda()
    if found is None:
        return "this onnxruntime has no CUDA support; install the gpu extra"
    return f"this onnxruntime has no CUDA support; the NVIDIA driver {driver_advice(found)}"


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
