"""Run an exported model with ONNX Runtime, and report the execution provider in use."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from postprocess.results.facts import Extras
from service.errors import StartupError
from service.inference import openvino_cpu, trt_engines
from service.inference.contract import (
    CONFIDENCE,
    INPUT,
    LABELS,
    OPTIONAL,
    PROBABILITIES,
    Contract,
    ContractError,
    InputSize,
    choices,
    parse,
)
from service.inference.cuda import (
    cuda_options,
    cuda_problem,
    fall_back,
    found_cuda,
    not_compiled_in,
    preload,
)
from service.inference.digest import graph_digest
from service.inference.encoding import metadata, of_one_size, without_input
from service.inference.openvino_cpu import OPENVINO, Lane, OpenVino, OpenVinoOptions, Precision
from service.inference.trt_engines import TrtOptions

log = logging.getLogger("service.engine")
# Errors only: this package reports what matters, and other messages confuse users.
ort.set_default_logger_severity(3)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# The entry of a tensor (onnx.proto: StringStringEntryProto) that names another file.
EXTERNAL = b"\x0a\x08location"
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_FLAGS = [np.array(False), np.array(True)]
Device = Literal["auto", "cpu", "openvino", "cuda", "tensorrt"]


@dataclass(frozen=True)
class EngineOptions:
    """How to create sessions."""

    device: Device = "auto"
    gpu: int = 0  # number of the GPU
    threads: int = 0  # 0: ONNX Runtime's own choice
    lanes: int = 1  # concurrent runs that share the threads; on the CPU only
    gpu_mem_limit_mb: int = 0  # 0: no limit
    trt: TrtOptions | None = None  # required for the device tensorrt
    precision: Precision = "auto"  # of OpenVINO
    openvino_cache: Path | None = None


@dataclass(frozen=True)
class Prediction:
    """The model's output for one image."""

    labels: NDArray[np.uint8]  # (H, W) class ids
    confidence: NDArray[np.uint8] | None = None  # (H, W) probability of the label times 255
    probabilities: NDArray[np.uint8] | None = None  # (K, h, w) of all classes times 255


Predict = Callable[..., list[Prediction]]  # of images (N, H, W, C), and Extras


class Engine:
    """A loaded model. Call `run` and `predict` from one thread at a time.

    On a GPU a file that takes several sizes runs at its largest, so that photos share batches
    and no shape is compiled while requests wait; `contract` then says `fixed`.

    On the CPU an engine has several lanes: concurrent runs that share the threads. They
    have a higher throughput than runs with all threads one after another, because the
    threads of one run wait for each other at every layer, most of all while other threads
    decode. `runs` has a `predict` for each lane; `predict_alone` gives one image all
    threads.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        """Load `path`; raises StartupError if the file or the device cannot be used."""
        self.name = path.stem
        self.threads = options.threads
        data = _read(path)  # read once: the digest must match the loaded model
        self.digest = _digest(data)
        self._gpu = options.gpu
        self._flags: set[str] = set()  # inputs that turn optional outputs on and off
        self.provider: str
        self.execution_precision: str  # the number format in use
        self._session: Any
        self._lanes: list[Any]
        openvino = _openvino(path, data, options)
        if openvino is None:
            self._open_onnx_runtime(path, data, options)
        else:
            self.provider, self.execution_precision = OPENVINO, openvino.precision
            self.contract = _contract(path, metadata(data))
            self._session, self._lanes = openvino.alone, openvino.lanes
        self.lanes = len(self._lanes)

    def _open_onnx_runtime(self, path: Path, data: bytes, options: EngineOptions) -> None:
        wanted = _providers(path, data, options)
        self._session = _session(path, data, options, wanted)
        # The provider in use: one that failed to load is not in this list.
        self.provider = self._session.get_providers()[0]
        self.contract = _contract(path, self._session.get_modelmeta().custom_metadata_map)
        if wanted != [CPU]:
            self.contract = self.contract.of_one_size
        lanes = options.lanes if self.provider == CPU else 1
        self._lanes = [self._session]
        if lanes > 1:
            self._lanes = _shares(path, data, lanes, max(1, options.threads // lanes))
        self.execution_precision = self.contract.precision
        # Older files always compute the confidence.
        self._flags = {each.name for each in self._session.get_overridable_initializers()}
        _check_unaltered(path, data, self.contract)
        self._check_outputs(path)

    def _check_outputs(self, path: Path) -> None:
        found = [output.name for output in self._session.get_outputs()]
        if missing := set(choices(self.contract)[-1]) - set(found):
            raise StartupError(
                f"{path} has no output {sorted(missing)}, only {found}; export again"
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """The size (H, W) of the images that `run` takes."""
        return self.contract.input.height, self.contract.input.width

    @property
    def usual_batch(self) -> int:
        """The default number of images per run.

        One image keeps a CPU busy, and its activations fit the caches: with four, each
        image took 7 % longer.
        """
        return 1 if self.on_cpu else 4

    @property
    def on_cpu(self) -> bool:
        """Whether no GPU takes part."""
        return self.provider in {CPU, OPENVINO}

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(N, H, W, C) uint8 -> (N, H, W) uint8 class ids."""
        return self._run(self._lanes[0], images, [LABELS])[0]

    def predict(self, images: NDArray[np.uint8], extras: Extras = "labels") -> list[Prediction]:
        """(N, H, W, C) uint8 -> the labels of each image, then the chosen outputs.

        Confidence and probabilities take time, and are None if the model has none.
        """
        return self._predict_in(0, images, extras)

    @property
    def runs(self) -> list[Predict]:
        """`predict` for each lane; call each from one thread at a time."""
        return [self.predict, *(partial(self._predict_in, n) for n in range(1, self.lanes))]

    def _predict_in(
        self, lane: int, images: NDArray[np.uint8], extras: Extras = "labels"
    ) -> list[Prediction]:
        # By number: references to `runs` must not keep the sessions alive.
        return self._predict_with(self._lanes[lane], images, extras)

    def predict_alone(
        self, images: NDArray[np.uint8], extras: Extras = "labels"
    ) -> list[Prediction]:
        """Like `predict`, with the threads of all lanes; call it from one thread at a time."""
        return self._predict_with(self._session, images, extras)

    def _predict_with(
        self, session: ort.InferenceSession | Lane, images: NDArray[np.uint8], extras: Extras
    ) -> list[Prediction]:
        names = self._choice(extras)
        found = dict(zip(names, self._run(session, images, list(names)), strict=True))
        return [
            Prediction(**{name: values[index] for name, values in found.items()})
            for index in range(len(images))
        ]

    def _choice(self, extras: Extras) -> tuple[str, ...]:
        """Return the names of the outputs to compute."""
        if extras == LABELS:
            return (LABELS,)
        found = choices(self.contract)
        asked = [names for names in found if extras == PROBABILITIES or PROBABILITIES not in names]
        return asked[-1]

    @property
    def outputs(self) -> list[str]:
        """The names of the graph's outputs of a photo's size, each (N, H, W) uint8."""
        return [LABELS, CONFIDENCE] if self.contract.confidence else [LABELS]

    def _run(
        self, session: ort.InferenceSession | Lane, images: NDArray[np.uint8], outputs: list[str]
    ) -> list[NDArray[np.uint8]]:
        if isinstance(session, Lane):
            return session.run(outputs, images)
        wanted = {
            flag: _FLAGS[name in outputs] for name, flag in OPTIONAL.items() if flag in self._flags
        }
        if self.provider == CPU:
            return session.run(outputs, {INPUT: images, **wanted})  # type: ignore[no-any-return]
        # One copy to the GPU, and one copy back for each output.
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
        """The options of the provider in use, as ONNX Runtime reports them."""
        return dict(self._session.get_provider_options()[self.provider])

    def release(self) -> None:
        """Free the memory of the sessions; do not call `run` or `predict` afterwards."""
        self._session = None
        self._lanes = []

    def warm_up(self, max_batch: int) -> None:
        """Run every batch size once, with and without the optional outputs.

        Requests then do not wait for memory allocation and algorithm search. Lanes run at
        the same time, as they do in service: one session that they share allocates for all.
        """
        smallest = self.contract.input.around((1, 1))
        for batch in range(1, max_batch + 1):
            for height, width in dict.fromkeys([self.input_size, smallest]):
                images = np.zeros((batch, height, width, self.contract.input.channels), np.uint8)
                for extras in self._levels:
                    self._run_all_lanes(images, extras)
                    if self.lanes > 1:
                        self.predict_alone(images, extras)

    @property
    def _levels(self) -> list[Extras]:
        """Return what may be requested besides the labels, from nothing to everything."""
        levels: list[Extras] = [LABELS]
        if self.contract.confidence:
            levels.append(CONFIDENCE)
        if self.contract.probability_grid:
            levels.append(PROBABILITIES)
        return levels

    def _run_all_lanes(self, images: NDArray[np.uint8], extras: Extras) -> None:
        first, *others = self.runs
        with ThreadPoolExecutor(max(1, len(others))) as pool:
            running = [pool.submit(run, images, extras) for run in others]
            first(images, extras)
            for each in running:
                each.result()


def _read(path: Path) -> bytes:
    try:
        # A FIFO would have the reader wait for a writer, and nothing could stop it then.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise StartupError(f"{path} is not a regular file")
            data = file.read()
    except OSError as error:
        raise StartupError(f"cannot read the model {path}: {error.strerror}") from None
    if EXTERNAL in data:
        raise StartupError(
            f"{path} keeps its weights in another file, which no digest covers: "
            "export it as one file (onnx.save without save_as_external_data)"
        )
    return data


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a model file; raises StartupError if it cannot be read."""
    return _digest(_read(path))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _contract(path: Path, metadata: dict[str, str]) -> Contract:
    try:
        return parse(metadata)
    except ContractError as error:
        raise StartupError(f"{path}: {error}") from None


def _check_unaltered(path: Path, data: bytes, contract: Contract) -> None:
    """Compare the digest: damaged weights give wrong masks, not errors."""
    if contract.graph_sha256 not in {None, graph_digest(data)}:
        raise StartupError(
            f"{path} was damaged or changed after its export: its digest does not match; "
            "copy or export it again"
        )


def _openvino(path: Path, data: bytes, options: EngineOptions) -> OpenVino | None:
    """Load the model in OpenVINO, if the device is openvino or it is auto and finds no GPU."""
    automatic = options.device == "auto"
    if automatic and (openvino_cpu.problem() or _providers(path, data, options) != [CPU]):
        return None
    if not automatic and options.device != "openvino":
        return None
    contract = _contract(path, metadata(data))
    _check_unaltered(path, data, contract)
    chosen = OpenVinoOptions(
        options.threads, options.lanes, options.precision, options.openvino_cache
    )
    try:
        return OpenVino(path, data, contract, chosen)
    except StartupError as error:
        if not automatic or options.precision == "bf16":
            raise
        log.warning("serving with ONNX Runtime: %s", error)
        return None


def _session(
    path: Path, data: bytes, options: EngineOptions, wanted: list[Any]
) -> ort.InferenceSession:
    if options.precision == "bf16":
        raise StartupError(f"--precision bf16 needs OpenVINO: {openvino_cpu.problem()}")
    if options.device == "tensorrt":
        # An input that sets sizes would need a profile, and on a GPU these outputs cost nothing.
        for flag in OPTIONAL.values():
            data = without_input(data, flag)
    size = None if wanted == [CPU] else _contract(path, metadata(data)).input
    session = _load(path, data, wanted, options.threads, size)
    if session.get_providers()[0] != _name(wanted[0]):
        reason = cuda_problem() or f"the session was created without {_name(wanted[0])}"
        fall_back(options.device, reason)
    return session


def _load(
    path: Path, data: bytes, providers: list[Any], threads: int, size: InputSize | None = None
) -> ort.InferenceSession:
    """`size`: of all photos; only files that take several sizes need it."""
    config = ort.SessionOptions()
    if size is not None and size.policy != "fixed":
        data = of_one_size(data, INPUT, (size.height, size.width))
        config.add_free_dimension_override_by_name("height", size.height)
        config.add_free_dimension_override_by_name("width", size.width)
    config.intra_op_num_threads = threads
    config.inter_op_num_threads = 1
    config.log_severity_level = 3  # errors only, as above
    # Else weights in other files would be taken from the working directory.
    config.add_session_config_entry(EXTERNAL_FOLDER, os.devnull)
    try:
        return ort.InferenceSession(data, config, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise StartupError(f"ONNX Runtime cannot load {path}: {error}") from None


def _shares(path: Path, data: bytes, lanes: int, threads: int) -> list[ort.InferenceSession]:
    """Return a session for each lane; with one thread each, the same session for all.

    Concurrent runs of one session share its threads, and would leave other CPUs idle. With
    one thread per lane each run works in its caller's thread.
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
        fall_back(options.device, not_compiled_in(), expected=found_cuda() is None)
        return [CPU]
    preload()
    if problem := cuda_problem():
        fall_back(options.device, problem)
        return [CPU]
    cuda = [(CUDA, cuda_options(options.gpu, options.gpu_mem_limit_mb)), CPU]
    return [_tensorrt(path, data, options), *cuda] if options.device == "tensorrt" else cuda


def _tensorrt(path: Path, data: bytes, options: EngineOptions) -> tuple[str, dict[str, str]]:
    """Return the TensorRT provider and its options; raises StartupError if it cannot be used."""
    if options.trt is None:
        raise StartupError("--device tensorrt needs --trt-cache, the folder with its engines")
    if problem := trt_engines.problem():
        raise StartupError(f"--device tensorrt: {problem}")
    host = trt_engines.Host.found(options.gpu)
    where = trt_engines.folder(path.stem, _digest(data), host, options.trt)
    if options.trt.build:
        where.mkdir(parents=True, exist_ok=True)
    else:
        trt_engines.require(path, where, options.trt)
    # The profiles need the input size, which is in the contract.
    described = _load(path, data, [CPU], 1).get_modelmeta().custom_metadata_map
    contract = _contract(path, described)
    return (
        trt_engines.TENSORRT,
        trt_engines.provider_options(contract, where, options.gpu, options.trt),
    )
