"""TensorRT engines: built ahead by a command, kept in a folder, never built on request.

Building takes minutes, so the service only starts on engines that are there already.
An engine fits one model file, one GPU model, one version of TensorRT and ONNX Runtime,
one range of batch sizes and one precision: all of it is in the name of its folder.
https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from service.errors import StartupError
from service.inference.contract import INPUT, Contract

TENSORRT = "TensorrtExecutionProvider"
COMPLETE = "complete.json"  # written last: a build that broke off left none
BUILD = ("python", "-m", "service", "build-engines")
LIBRARY = "libnvinfer.so.10"  # what ONNX Runtime's provider is linked against


@dataclass(frozen=True)
class TrtOptions:
    """Where engines are, and what they are built for."""

    cache: Path
    max_batch: int
    fp16: bool = False
    build: bool = False  # make what is missing, rather than refuse to start

    @property
    def flags(self) -> list[str]:
        """The flags of the service that amount to these options."""
        chosen = ["--trt-cache", str(self.cache), "--max-batch", str(self.max_batch)]
        return [*chosen, "--trt-fp16"] if self.fp16 else chosen


@dataclass(frozen=True)
class Host:
    """What an engine depends on beside the model: it works nowhere else."""

    gpu: str
    tensorrt: str

    @staticmethod
    def found(gpu: int) -> Host:
        """This host and one of its GPUs, by number; raises OSError where there is none."""
        return Host(_gpu_name(gpu), _tensorrt_version())


def problem() -> str | None:
    """Why TensorRT cannot be used; None when it loads. CUDA is checked elsewhere."""
    if TENSORRT not in ort.get_available_providers():
        return "this onnxruntime is built without TensorRT; install the gpu extra"
    with suppress(ImportError):  # NVIDIA's wheel: importing it loads the libraries
        importlib.import_module("tensorrt_libs")
    provider = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    try:
        ctypes.CDLL(LIBRARY, ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))
    except OSError as error:
        return f"TensorRT 10 does not load ({error}); pip install 'tensorrt>=10,<11'"
    return None


def folder(model: str, digest: str, host: Host, options: TrtOptions) -> Path:
    """Where the engines of one model file for one host are."""
    parts = (
        model,
        digest[:16],
        host.gpu,
        f"trt{host.tensorrt}",
        f"ort{ort.__version__}",
        f"batch{options.max_batch}",
        "fp16" if options.fp16 else "fp32",
    )
    return options.cache / "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


def provider_options(
    contract: Contract, where: Path, gpu: int, options: TrtOptions
) -> dict[str, str]:
    """Options with explicit profiles: without them each new shape would build an engine."""
    height, width = contract.input.height, contract.input.width
    shape = f"{height}x{width}x3"
    return {
        "device_id": str(gpu),
        "trt_fp16_enable": str(int(options.fp16)),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(where),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(where),
        "trt_profile_min_shapes": f"{INPUT}:1x{shape}",
        "trt_profile_opt_shapes": f"{INPUT}:{options.max_batch}x{shape}",
        "trt_profile_max_shapes": f"{INPUT}:{options.max_batch}x{shape}",
    }


def require(model: Path, where: Path, options: TrtOptions) -> None:
    """Refuse to go on without engines; raises StartupError with the command that makes them."""
    try:
        noted = json.loads((where / COMPLETE).read_text(encoding="utf-8"))
        missing = [name for name in noted["engines"] if not (where / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError):
        missing = ["all"]
    if missing:
        command = shlex.join([*BUILD, "--models", str(model.parent), *options.flags])
        raise StartupError(
            f"--device tensorrt: no engines for {model.name} in {where} ({', '.join(missing)}); "
            f"build them on this host, which takes minutes, with: {command}"
        )


def note_complete(model: Path, where: Path) -> list[str]:
    """Write down what a build made; raises StartupError when it made nothing."""
    engines = sorted(path.name for path in where.glob("*.engine"))
    if not engines:
        raise StartupError(f"{model}: TensorRT took no part of this graph; use --device cuda")
    (where / COMPLETE).write_text(json.dumps({"engines": engines}), encoding="utf-8")
    return engines


def _gpu_name(number: int) -> str:
    driver = ctypes.CDLL("libcuda.so.1")
    device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), number)
        or driver.cuDeviceGetName(name, len(name), device)
    )
    if failed:
        raise OSError(f"CUDA error {failed}")
    return name.value.decode(errors="replace")


def _tensorrt_version() -> str:
    return str(ctypes.CDLL(LIBRARY).getInferLibVersion())  # as 101303 for 10.13.3
