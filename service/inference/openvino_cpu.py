"""OpenVINO as the engine of one exported model on a CPU.

Where the CPU multiplies bfloat16 (AMX, AVX512-BF16), OpenVINO computes in it by default and
is about twice as fast as ONNX Runtime in float32. The `openvino` package is used rather
than ONNX Runtime's OpenVINO provider: docs/performance.md says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import StartupError
from service.inference import openvino_tail
from service.inference.contract import INPUT, LABELS, Contract, choices
from service.inference.sizes import Outputs, Size, Sizes

OPENVINO = "OpenVINO"  # in place of an execution provider's name
Precision = Literal["auto", "fp32", "bf16"]
HINTS = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's names
NAMES = {hint: name for name, hint in HINTS.items()}
THREADS_PER_LANE = 2  # with two CPUs, two lanes of one thread were no faster than one of two


@dataclass(frozen=True)
class OpenVinoOptions:
    """How models are compiled."""

    threads: int
    lanes: int  # at most
    precision: Precision = "auto"
    cache: Path | None = None  # folder of compiled models, for quick restarts


def problem() -> str | None:
    """Return why OpenVINO cannot be used; None if it is installed."""
    if find_spec("openvino") is None:
        return "openvino is not installed; install the openvino extra"
    return None


class Compiled:
    """A compiled model, with an inference request for each lane."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._requests: dict[int, Any] = {}

    def request(self, lane: int) -> Any:
        """The inference request of a lane; no other thread uses it."""
        if lane not in self._requests:
            self._requests[lane] = self.model.create_infer_request()
        return self._requests[lane]


class Lane:
    """A model for one run at a time."""

    def __init__(self, sizes: Sizes[Compiled], number: int = 0) -> None:
        self._sizes, self._number = sizes, number

    def run(self, outputs: Sequence[str], images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """(N, H, W, C) uint8 -> each of the outputs, (N, ...) uint8.

        Images run one by one: a CPU is not faster with several, and only one is compiled for.
        """
        model = self._sizes.of((images.shape[1], images.shape[2]), tuple(outputs))
        request = model.request(self._number)
        found = [request.infer([image[None]], share_inputs=True) for image in images]
        return [np.concatenate([each[name] for each in found]) for name in outputs]


class OpenVino:
    """A model, compiled; raises StartupError if OpenVINO cannot read it or run it as asked."""

    def __init__(
        self, path: Path, data: bytes, contract: Contract, options: OpenVinoOptions
    ) -> None:
        if reason := problem():
            raise StartupError(f"--device openvino: {reason}")
        import openvino  # noqa: PLC0415 - an extra; loading it takes a quarter of a second

        self._library = openvino
        self._core = openvino.Core()
        self._check_precision(options.precision)
        if options.cache is not None:
            self._core.set_property({"CACHE_DIR": str(options.cache)})
        self._choices = choices(contract)
        self._path, self._data, self._contract, self._options = path, data, contract, options
        alone = self._sizes(1)
        self.alone = Lane(alone)
        lanes = max(1, min(options.lanes, options.threads // THREADS_PER_LANE))
        self.lanes = [self.alone]
        if lanes > 1:
            shared = self._sizes(lanes)
            self.lanes = [Lane(shared, number) for number in range(lanes)]
        of_labels = alone.of_whole[LABELS,].model
        self.precision = self._running(of_labels)
        self.from_cache = bool(of_labels.get_property("LOADED_FROM_CACHE"))

    def _check_precision(self, precision: Precision) -> None:
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in able:
            raise StartupError(
                f"--precision bf16: this CPU has neither AMX nor AVX512-BF16 ({', '.join(able)}); "
                "--precision auto takes what it has"
            )

    def _running(self, compiled: Any) -> str:
        """The precision in use, as OpenVINO reports it; quantized layers stay in 8 bits."""
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        name = NAMES.get(hint, hint)
        return f"int8+{name}" if self._contract.precision == "int8" else name

    def _sizes(self, streams: int) -> Sizes[Compiled]:
        """Models with so many streams; that of the whole input now, not while a request waits."""
        fit = self._contract.input
        whole = (fit.height, fit.width)
        return Sizes(partial(self._compiled, streams), whole, fit.common, self._choices)

    def _compiled(self, streams: int, size: Size | None, outputs: Outputs) -> Compiled:
        """The model for a choice of outputs: OpenVINO computes all that a model has."""
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self._options.threads,
            # Processes that share a quota of CPUs would all pin their threads to the first ones.
            "ENABLE_CPU_PINNING": False,
        }
        precision = self._options.precision
        if precision == "auto" and self._contract.precision == "int8":
            # Measured with AMX: 21.8 ms an image, and 29.1 in bf16, as values are converted between
            # bf16 and 8 bits at each quantized layer.
            precision = "fp32"
        if precision != "auto":
            config["INFERENCE_PRECISION_HINT"] = HINTS[precision]
        try:
            model = self._core.compile_model(self._model(outputs, size), "CPU", config)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise StartupError(
                f"{self._path} is not a model that OpenVINO can load: {reason}; a file with "
                "confidence from before December 2026 must be exported again"
            ) from None
        return Compiled(model)

    def _model(self, outputs: Sequence[str], size: Size | None) -> Any:
        """The part of the file that some outputs need, for one image of a size (H, W) or any."""
        whole = self._core.read_model(self._data)
        results = [whole.output(name) for name in outputs]
        model = self._library.Model(results, whole.get_parameters())
        model.reshape({INPUT: [1, *(size or (-1, -1)), self._contract.input.channels]})
        openvino_tail.rewrite(model)
        return model
