"""ONNX Runtime around one exported model, saying honestly what it runs on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.errors import StartupError
from service.inference import trt_engines
from service.inference.contract import (
    CONFIDENCE,
    INPUT,
    LABELS,
    WITH_CONFIDENCE,
    Contract,
    ContractError,
    parse,
)
from service.inference.cuda import cuda_options, cuda_problem, fall_back, preload
from service.inference.digest import graph_digest
from service.inference.trt_engines import TrtOptions

log = logging.getLogger("service.engine")
# What matters is reported in our own words: the rest, such as a search for plugins, confuses.
ort.set_default_logger_severity(3)  # errors

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_FLAGS = [np.array(False), np.array(True)]
Device = Literal["auto", "cpu", "cuda", "tensorrt"]


@dataclass(frozen=True)
class EngineOptions:
    """How sessions are made."""

    device: Device = "auto"
    gpu: int = 0  # its number
    threads: int = 0  # 0: ONNX Runtime's own choice
    lanes: int = 1  # runs at a time that share the threads; on the CPU only
    gpu_mem_limit_mb: int = 0  # 0: no limit
    trt: TrtOptions | None = None  # needed by the device tensorrt


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    labels: NDArray[np.uint8]  # (H, W) class ids
    confidence: NDArray[np.uint8] | None = None  # (H, W) probability of the label times 255


Predict = Callable[..., list[Prediction]]  # of images (N, H, W, 3), and whether with confidence


class Engine:
    """One exported model, loaded. `run` and `predict` are to be called by one thread at a time.

    On the CPU several lanes, each a run with its share of the threads, get more done
    than one run with all of them after the other: threads of one run wait for each other
    at every layer, the more so where a core is also wanted for decoding: `runs` has a
    `predict` for each. `predict_alone` still gives one image all threads.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        """Load `path`; raises StartupError when the file or the device is not fit for use."""
        self.name = path.stem
        self.threads = options.threads
        data = _read(path)  # once, so that the digest is of what runs even if the file changes
        self.digest = _digest(data)
        self._gpu = options.gpu
        self._session = _session(path, data, options)
        # What really runs: a provider that failed to load is not in this list.
        self.provider: str = self._session.get_providers()[0]
        self.lanes = options.lanes if self.provider == CPU else 1
        self._lanes = [self._session]
        if self.lanes > 1:
            self._lanes = _shares(path, data, self.lanes, max(1, options.threads // self.lanes))
        self.contract = _contract(path, self._session.get_modelmeta().custom_metadata_map)
        # Files of earlier versions compute it always.
        optional = {each.name for each in self._session.get_overridable_initializers()}
        self._chooses = WITH_CONFIDENCE in optional
        _check_unaltered(path, data, self.contract)
        self._check_outputs(path)

    def _check_outputs(self, path: Path) -> None:
        found = [output.name for output in self._session.get_outputs()]
        if missing := set(self.outputs) - set(found):
            raise StartupError(f"{path}: outputs {found} lack {sorted(missing)}; export again")

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the images that `run` takes."""
        return self.contract.input.height, self.contract.input.width

    @property
    def usual_batch(self) -> int:
        """Images in one run, unless a setting says how many.

        One keeps a CPU busy, and its layers fit the caches: four took 7 % longer each.
        """
        return 1 if self.provider == CPU else 4

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(N, H, W, 3) uint8 -> (N, H, W) uint8 class ids."""
        return self._run(self._lanes[0], images, [LABELS])[0]

    def predict(self, images: NDArray[np.uint8], confidence: bool = False) -> list[Prediction]:
        """(N, H, W, 3) uint8 -> what the model says of each image.

        `confidence` asks for that too, which takes time; a model without has none.
        """
        return self._predict_in(0, images, confidence)

    @property
    def runs(self) -> list[Predict]:
        """`predict` for each lane, each to be called by one thread at a time."""
        return [self.predict, *(partial(self._predict_in, n) for n in range(1, self.lanes))]

    def _predict_in(
        self, lane: int, images: NDArray[np.uint8], confidence: bool = False
    ) -> list[Prediction]:
        # By number: whoever keeps `runs` is not to keep the sessions.
        return self._predict_with(self._lanes[lane], images, confidence)

    def predict_alone(
        self, images: NDArray[np.uint8], confidence: bool = False
    ) -> list[Prediction]:
        """As `predict`, with the threads of all lanes; to be called by one thread at a time."""
        return self._predict_with(self._session, images, confidence)

    def _predict_with(
        self, session: ort.InferenceSession, images: NDArray[np.uint8], confidence: bool
    ) -> list[Prediction]:
        if not (confidence and self.contract.confidence):
            (labels,) = self._run(session, images, [LABELS])
            return [Prediction(each) for each in labels]
        found = self._run(session, images, [LABELS, CONFIDENCE])
        return [Prediction(*each) for each in zip(*found, strict=True)]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs, each (N, H, W) uint8."""
        return [LABELS, CONFIDENCE] if self.contract.confidence else [LABELS]

    def _run(
        self, session: ort.InferenceSession, images: NDArray[np.uint8], outputs: list[str]
    ) -> list[NDArray[np.uint8]]:
        wanted = {WITH_CONFIDENCE: _FLAGS[CONFIDENCE in outputs]} if self._chooses else {}
        if self.provider == CPU:
            return session.run(outputs, {INPUT: images, **wanted})  # type: ignore[no-any-return]
        # One copy in and one copy out for each output.
        binding = session.io_binding()
        binding.bind_cpu_input(INPUT, images)
        for name, flag in wanted.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(flag))
        for name in outputs:
            binding.bind_output(name, "cuda", self._gpu)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()  # type: ignore[no-any-return]

    @property
    def provider_options(self) -> dict[str, str]:
        """The options of what really runs, as ONNX Runtime has understood them."""
        return dict(self._session.get_provider_options()[self.provider])

    def release(self) -> None:
        """Give the session's memory back; `run` and `predict` are not to be called any more."""
        self._session = None
        self._lanes = []

    def warm_up(self, max_batch: int) -> None:
        """Run every batch size once, with and without confidence.

        So no request pays for memory and algorithm search.
        """
        height, width = self.input_size
        for batch in range(1, max_batch + 1):
            images = np.zeros((batch, height, width, 3), np.uint8)
            for confidence in (False, True) if self.contract.confidence else (False,):
                for run in self.runs:
                    run(images, confidence)
                if self.lanes > 1:
                    self.predict_alone(images, confidence)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read the model {path}: {error.strerror}") from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _contract(path: Path, metadata: dict[str, str]) -> Contract:
    try:
        return parse(metadata)
    except ContractError as error:
        raise StartupError(f"{path}: {error}") from None


def _check_unaltered(path: Path, data: bytes, contract: Contract) -> None:
    """Damaged weights give wrong masks, not errors: only the digest tells."""
    if contract.graph_sha256 not in {None, graph_digest(data)}:
        raise StartupError(
            f"{path} was damaged or altered after its export: its digest is another; "
            "copy it again, or export again"
        )


def _session(path: Path, data: bytes, options: EngineOptions) -> ort.InferenceSession:
    wanted = _providers(path, data, options)
    session = _load(path, data, wanted, options.threads)
    if session.get_providers()[0] != _name(wanted[0]):
        reason = cuda_problem() or f"the session was created without {_name(wanted[0])}"
        fall_back(options.device, reason)
    return session


def _load(path: Path, data: bytes, providers: list[Any], threads: int) -> ort.InferenceSession:
    config = ort.SessionOptions()
    config.intra_op_num_threads = threads
    config.inter_op_num_threads = 1
    config.log_severity_level = 3  # errors; what matters is reported in our own words
    try:
        return ort.InferenceSession(data, config, providers=providers)
    except Exception as error:  # ONNX Runtime raises its own classes, not all of one root
        raise StartupError(f"{path} is not a model ONNX Runtime can load: {error}") from None


def _shares(path: Path, data: bytes, lanes: int, threads: int) -> list[ort.InferenceSession]:
    """A session for each lane. Those of one thread are the same one: its runs share nothing else.

    Runs of a session of several threads would share those, and leave other CPUs idle.
    """
    first = _load(path, data, [CPU], threads)
    if threads == 1:
        return [first] * lanes
    return [first, *(_load(path, data, [CPU], threads) for _ in range(lanes - 1))]


def _name(provider: Any) -> str:
    return str(provider if isinstance(provider, str) else provider[0])


def _providers(path: Path, data: bytes, options: EngineOptions) -> list[Any]:
    if options.device == "cpu":
        return [CPU]
    if CUDA not in ort.get_available_providers():
        reason = "this onnxruntime is built without CUDA; install the gpu extra"
        fall_back(options.device, reason, expected=True)
        return [CPU]
    preload()
    if problem := cuda_problem():
        fall_back(options.device, problem)
        return [CPU]
    cuda = [(CUDA, cuda_options(options.gpu, options.gpu_mem_limit_mb)), CPU]
    return [_tensorrt(path, data, options), *cuda] if options.device == "tensorrt" else cuda


def _tensorrt(path: Path, data: bytes, options: EngineOptions) -> tuple[str, dict[str, str]]:
    """TensorRT with the engines of this file, or where they are to be built."""
    if options.trt is None:
        raise StartupError("--device tensorrt: say where engines are kept, with --trt-cache")
    if problem := trt_engines.problem():
        raise StartupError(f"--device tensorrt: {problem}")
    host = trt_engines.Host.found(options.gpu)
    where = trt_engines.folder(path.stem, _digest(data), host, options.trt)
    if options.trt.build:
        where.mkdir(parents=True, exist_ok=True)
    else:
        trt_engines.require(path, where, options.trt)
    # The profiles need the size of the input, which is in the file.
    described = _load(path, data, [CPU], 1).get_modelmeta().custom_metadata_map
    contract = _contract(path, described)
    return (
        trt_engines.TENSORRT,
        trt_engines.provider_options(contract, where, options.gpu, options.trt),
    )
