"""TensorRT engines: built in advance by a command and kept in a folder.

Building takes minutes, so the service only starts if the engines exist. An engine works
for one model file, one GPU model, one version of TensorRT and ONNX Runtime, one range of
batch sizes and one precision; all of them are in the name of its folder.
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
COMPLETE = "complete.json"  # written last: an aborted build has none
BUILD = ("python", "-m", "service", "build-engines")
LIBRARY = "libnvinfer.so.10"  # ONNX Runtime's provider is linked against it


@dataclass(frozen=True)
class TrtOptions:
    """The folder of the engines and what they are built for."""

    cache: Path
    max_batch: int
    fp16: bool = False
    build: bool = False  # build missing engines instead of refusing to start

    @property
    def flags(self) -> list[str]:
        """The service's flags for these options."""
        chosen = ["--trt-cache", str(self.cache), "--max-batch", str(self.max_batch)]
        return [*chosen, "--trt-fp16"] if self.fp16 else chosen


@dataclass(frozen=True)
class Host:
    """The GPU and the TensorRT version that an engine is built for."""

    gpu: str
    tensorrt: str

    @staticmethod
    def found(gpu: int) -> Host:
        """Describe a GPU of this host, by number; raises OSError if there is none."""
        return Host(_gpu_name(gpu), _tensorrt_version())


def problem() -> str | None:
    """Return why TensorRT cannot be used, or None. See `cuda` for CUDA itself."""
    if TENSORRT not in ort.get_available_providers():
        return "this onnxruntime is built without TensorRT; install the gpu extra"
    with suppress(ImportError):  # NVIDIA's wheel: importing it loads the libraries
        importlib.import_module("tensorrt_libs")
    provider = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    try:
        ctypes.CDLL(LIBRARY, ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))
    except OSError as error:
        cuda = (ort.cuda_version or "13").partition(".")[0]
        return f"TensorRT 10 does not load ({error}); pip install 'tensorrt-cu{cuda}>=10,<11'"
    return None


def folder(model: str, digest: str, host: Host, options: TrtOptions) -> Path:
    """Return the folder for the engines of a model file on a host."""
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
    """Return options with explicit shape profiles, so that a new shape builds no new engine."""
    size = contract.input
    shape = f"{size.height}x{size.width}x{size.channels}"
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
    """Raise StartupError, with the command that builds them, if engines are missing."""
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
    """Record the engines of a finished build; raises StartupError if there are none."""
    engines = sorted(path.name for path in where.glob("*.engine"))
    if not engines:
        raise StartupError(
            f"{model}: TensorRT cannot run any part of this graph; use --device cuda"
        )
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
