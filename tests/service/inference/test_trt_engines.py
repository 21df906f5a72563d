"""TensorRT: options and refusals, on a stand-in for ONNX Runtime's session; no GPU is needed.

These tests do not show what TensorRT itself does with the options.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from service import __main__ as cli
from service.errors import StartupError
from service.inference import cuda, models, trt_engines
from service.inference import engine as engines
from service.inference.contract import CONFIDENCE, LABELS, WITH_CONFIDENCE
from service.inference.engine import CPU, CUDA, Device, Engine, EngineOptions
from service.inference.trt_engines import COMPLETE, TENSORRT, Host, TrtOptions
from service.settings import Settings
from tests.service import onnx_models

RealSession = ort.InferenceSession


class Binding:
    """A stand-in for OrtIOBinding."""

    def __init__(self) -> None:
        self.image: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.outputs: list[tuple[str, str, int]] = []
        self.confident: bool | None = None

    def bind_cpu_input(self, _: str, image: NDArray[np.uint8]) -> None:
        self.image = image

    def bind_ortvalue_input(self, name: str, value: ort.OrtValue) -> None:
        assert name == WITH_CONFIDENCE
        self.confident = bool(value.numpy())

    def bind_output(self, *where: Any) -> None:
        self.outputs.append(where)

    def copy_outputs_to_cpu(self) -> list[NDArray[np.uint8]]:
        return [onnx_models.expected(self.image)] * len(self.outputs)


class Session:
    """A stand-in for an InferenceSession with working GPU providers. It records its arguments."""

    asked: ClassVar[list[list[Any]]] = []
    builds: ClassVar[bool] = True  # whether TensorRT takes a part of the graph
    batches: ClassVar[list[int]] = []
    bound: ClassVar[list[tuple[str, str, int]]] = []
    confident: ClassVar[bool | None] = None

    def __init__(self, data: bytes, config: Any, *, providers: list[Any]) -> None:
        self._real = RealSession(data, config, providers=[CPU])
        self._providers = providers
        self.asked.append(providers)
        if providers[0][0] == TENSORRT:
            where = Path(providers[0][1]["trt_engine_cache_path"])
            if self.builds and not list(where.glob("*.engine")):
                (where / "part_0_sm90.engine").write_bytes(b"engine")

    def get_providers(self) -> list[str]:
        return [each if isinstance(each, str) else each[0] for each in self._providers]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return dict(each for each in self._providers if not isinstance(each, str))

    def get_modelmeta(self) -> Any:
        return self._real.get_modelmeta()

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def get_overridable_initializers(self) -> Any:
        return self._real.get_overridable_initializers()

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding) -> None:
        self.batches.append(len(binding.image))
        self.bound[:] = binding.outputs
        type(self).confident = binding.confident


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    """A host on which CUDA and TensorRT seem to work."""
    Session.asked, Session.batches = [], []
    monkeypatch.setattr(Session, "builds", True)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(engines, "cuda_problem", lambda: None)
    monkeypatch.setattr(trt_engines, "problem", lambda: None)
    host = Host("NVIDIA L4", "101303")
    monkeypatch.setattr(trt_engines.Host, "found", staticmethod(lambda _: host))
    return Session


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return onnx_models.save(tmp_path / "models" / "tiny.onnx", confidence=True, on_request=True)


def settings(model: Path, **changes: Any) -> Settings:
    cache = model.parents[1] / "cache"
    return Settings(models=model.parent, device="tensorrt", trt_cache=cache, **changes)


def test_without_engines_the_service_refuses_and_says_how_to_make_them(
    gpu: type[Session], model: Path
) -> None:
    with pytest.raises(StartupError) as refused:
        models.load(settings(model, max_batch=3, trt_fp16=True))
    cache = model.parents[1] / "cache"
    command = (
        f"python -m service build-engines --models {model.parent} "
        f"--trt-cache {cache} --max-batch 3 --trt-fp16"
    )
    assert str(refused.value).endswith(command)
    assert not cache.exists()
    assert not any(each[0][0] == TENSORRT for each in gpu.asked)  # nothing was started


def test_engines_are_built_once_and_then_served(
    gpu: type[Session], model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache = model.parents[1] / "cache"
    flags = ["--models", str(model.parent), "--trt-cache", str(cache), "--max-batch", "3"]
    assert cli.main(["build-engines", *flags]) == 0
    assert gpu.batches == [1, 1, 2, 2, 3, 3]  # without confidence, and with it
    (folder,) = cache.iterdir()
    assert {path.name for path in folder.iterdir()} == {"part_0_sm90.engine", COMPLETE}
    assert "part_0_sm90.engine" in caplog.text

    (folder / "part_0_sm90.engine").write_bytes(b"as it was built")
    served = models.load(settings(model, max_batch=3)).get(None)
    assert served.engine.provider == TENSORRT
    assert (folder / "part_0_sm90.engine").read_bytes() == b"as it was built"


def test_every_shape_a_batch_can_have_is_in_the_profile(gpu: type[Session], model: Path) -> None:
    models.build_engines(settings(model, max_batch=8, trt_fp16=True, gpus=(2,)))
    tensorrt, cuda, cpu = gpu.asked[-1]
    name, options = tensorrt
    height, width = onnx_models.SIZE
    assert (name, cuda[0], cpu) == (TENSORRT, CUDA, CPU)
    assert options["trt_profile_min_shapes"] == f"image:1x{height}x{width}x3"
    assert options["trt_profile_opt_shapes"] == f"image:8x{height}x{width}x3"
    assert options["trt_profile_max_shapes"] == f"image:8x{height}x{width}x3"
    assert options["trt_fp16_enable"] == "1"
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert options["device_id"] == cuda[1]["device_id"] == "2"


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_on_a_gpu_a_file_of_several_sizes_runs_at_one(
    gpu: type[Session], model: Path, device: Device
) -> None:
    """Photos of all sizes then share batches, and the contract says how they are padded."""
    onnx_models.save(model, aligned=True)
    if device == "tensorrt":
        models.build_engines(settings(model))
        shape = "49x65x3"
        assert gpu.asked[-1][0][1]["trt_profile_max_shapes"].endswith(shape)
    else:
        assert Engine(model, EngineOptions("cuda")).contract.input == onnx_models.ALIGNED.whole
    assert Engine(model, EngineOptions("cpu")).contract.input == onnx_models.ALIGNED


def test_outputs_are_bound_on_the_gpu_of_the_session(gpu: type[Session], model: Path) -> None:
    engine = Engine(model, EngineOptions("cuda", gpu=3))
    images = np.random.default_rng(0).integers(0, 256, (2, *onnx_models.SIZE, 3), np.uint8)
    for confidence, bound in ((False, [LABELS]), (True, [LABELS, CONFIDENCE])):
        (first, _) = engine.predict(images, CONFIDENCE if confidence else LABELS)
        assert gpu.bound == [(name, "cuda", 3) for name in bound]
        assert gpu.confident is confidence  # the input that turns the confidence off
        assert (first.labels == onnx_models.expected(images[0])).all()


@pytest.mark.parametrize(
    "changes", [{"max_batch": 5}, {"trt_fp16": True}, {"host": Host("NVIDIA L4", "101400")}]
)
def test_engines_for_something_else_do_not_count(
    gpu: type[Session], model: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    models.build_engines(settings(model))
    models.load(settings(model))
    if host := changes.pop("host", None):
        monkeypatch.setattr(trt_engines.Host, "found", staticmethod(lambda _: host))
    with pytest.raises(StartupError, match="build-engines"):
        models.load(settings(model, **changes))


def test_engines_of_a_changed_model_do_not_count(gpu: type[Session], model: Path) -> None:
    models.build_engines(settings(model))
    onnx_models.save(model, brightest=1)
    with pytest.raises(StartupError, match="build-engines"):
        models.load(settings(model))


@pytest.mark.parametrize("fault", ["unfinished", "engine lost", "note broken"])
def test_an_unfinished_build_does_not_count(gpu: type[Session], model: Path, fault: str) -> None:
    models.build_engines(settings(model))
    (folder,) = (model.parents[1] / "cache").iterdir()
    if fault == "unfinished":
        (folder / COMPLETE).unlink()
    elif fault == "engine lost":
        (folder / "part_0_sm90.engine").unlink()
    else:
        (folder / COMPLETE).write_text("{")
    with pytest.raises(StartupError, match="build-engines"):
        models.load(settings(model))


def test_a_graph_that_tensorrt_takes_no_part_of_is_an_error(
    gpu: type[Session], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "builds", False)
    with pytest.raises(StartupError, match="cannot run any part"):
        models.build_engines(settings(model))


def test_a_session_without_tensorrt_is_refused(
    gpu: type[Session], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a provider fails, ONNX Runtime only logs a line and continues without it."""
    models.build_engines(settings(model))
    monkeypatch.setattr(Session, "get_providers", lambda _: [CUDA, CPU])
    with pytest.raises(StartupError, match=f"created without {TENSORRT}"):
        models.load(settings(model))


def test_tensorrt_without_its_folder_is_a_usage_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--device", "tensorrt"]) == 2
    assert capsys.readouterr().err.startswith("error: --device tensorrt needs --trt-cache")
    with pytest.raises(StartupError, match="--trt-cache"):
        engines._tensorrt(Path("x"), b"", EngineOptions("tensorrt"))


@pytest.mark.skipif(cuda.cuda_problem() is None, reason="a working GPU is present")
def test_a_host_without_a_gpu_refuses_with_the_reason(model: Path) -> None:
    with pytest.raises(StartupError, match=r"--device tensorrt: .*(NVIDIA|CUDA)"):
        models.load(settings(model))


def test_the_folder_of_engines_is_a_plain_name() -> None:
    options = TrtOptions(Path("cache"), 4)
    folder = trt_engines.folder("a b", "0" * 64, Host("NVIDIA H200 / 2", "101303"), options)
    assert folder.parent == Path("cache")
    assert folder.name.startswith("a_b-0000000000000000-NVIDIA_H200_2-trt101303-ort")
    assert folder.name.endswith("-batch4-fp32")
