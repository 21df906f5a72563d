"""The engine loads valid files only, and reports the provider in use."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest

from service.errors import StartupError
from service.inference.contract import METADATA_KEY
from service.inference.cuda import cuda_options, cuda_problem, driver_advice, driver_problem
from service.inference.digest import graph_digest
from service.inference.engine import CPU, CUDA, Engine, EngineOptions
from tests.service import onnx_models

needs_no_gpu = pytest.mark.skipif(cuda_problem() is None, reason="a working GPU is present")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return onnx_models.save(tmp_path / "tiny.onnx")


def test_labels_come_out_as_the_graph_defines_them(model: Path) -> None:
    engine = Engine(model, EngineOptions("cpu"))
    images = np.random.default_rng(0).integers(0, 256, (3, *onnx_models.SIZE, 3), np.uint8)
    labels = engine.run(images)
    assert labels.dtype == np.uint8
    assert (labels == onnx_models.expected(images)).all()


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_aligned_file_runs_photos_of_its_sizes(tmp_path: Path, lanes: int) -> None:
    file = onnx_models.save(tmp_path / "tiny.onnx", aligned=True)
    engine = Engine(file, EngineOptions("cpu", threads=2, lanes=lanes))
    engine.warm_up(2)
    for height, width in ((49, 65), (33, 65), (49, 49)) * 5:  # until each has its session
        images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
        for predict in (*engine.runs, engine.predict_alone):
            found = [each.labels for each in predict(images)]
            assert (np.stack(found) == onnx_models.expected(images)).all()


def test_the_engine_knows_its_file(model: Path) -> None:
    engine = Engine(model, EngineOptions("cpu"))
    assert engine.name == "tiny"
    assert engine.digest == hashlib.sha256(model.read_bytes()).hexdigest()
    assert engine.input_size == onnx_models.SIZE
    assert engine.provider == CPU


def test_weights_that_changed_after_the_export_are_refused(tmp_path: Path) -> None:
    bare = onnx_models.save(tmp_path / "tiny.onnx", {})
    sealed = onnx_models.contract(graph_sha256=graph_digest(bare.read_bytes()))
    metadata = {METADATA_KEY: sealed.model_dump_json()}
    Engine(onnx_models.save(bare, metadata), EngineOptions("cpu"))
    altered = onnx_models.save(bare, metadata, brightest=1)
    with pytest.raises(StartupError, match=r"tiny\.onnx was damaged or changed after its export"):
        Engine(altered, EngineOptions("cpu"))


@pytest.mark.parametrize("how", [{}, {"on_request": True}, {"earlier": True}])
@pytest.mark.parametrize("lanes", [1, 2])
def test_confidence_is_returned_on_request(
    tmp_path: Path, how: dict[str, bool], lanes: int
) -> None:
    """Files of all three formats: always computed, with a Slice, with an If."""
    path = onnx_models.save(tmp_path / "tiny.onnx", confidence=True, **how)  # type: ignore[arg-type]
    engine = Engine(path, EngineOptions("cpu", threads=2, lanes=lanes))
    images = np.random.default_rng(0).integers(0, 256, (2, *engine.input_size, 3), np.uint8)
    for predict in (*engine.runs, engine.predict_alone):
        plain, sure = predict(images), predict(images, "confidence")
        assert [each.confidence for each in plain] == [None, None]
        for image, without, each in zip(images, plain, sure, strict=True):
            assert (each.labels == without.labels).all()
            assert (each.confidence == image[..., 0]).all()


def test_a_model_without_confidence_has_none(model: Path) -> None:
    engine = Engine(model, EngineOptions("cpu"))
    (found,) = engine.predict(np.zeros((1, *engine.input_size, 3), np.uint8), "confidence")
    assert found.confidence is None


def test_warm_up_runs_with_and_without_confidence(tmp_path: Path) -> None:
    path = onnx_models.save(tmp_path / "tiny.onnx", confidence=True, on_request=True)
    engine = Engine(path, EngineOptions("cpu"))
    asked = []
    run = engine.predict
    engine.predict = lambda images, extras="labels": (asked.append(extras), run(images))[1]  # type: ignore[func-returns-value, method-assign]
    engine.warm_up(1)
    assert asked == ["labels", "confidence"]


def test_a_cpu_runs_one_image_at_a_time_unless_told_otherwise(model: Path) -> None:
    engine = Engine(model, EngineOptions("cpu"))
    assert engine.usual_batch == 1
    engine.provider = CUDA
    assert engine.usual_batch == 4


def test_warm_up_runs_every_batch_size(model: Path) -> None:
    engine = Engine(model, EngineOptions("cpu"))
    sizes = []
    run = engine.predict
    engine.predict = lambda images, extras="labels": (sizes.append(len(images)), run(images))[1]  # type: ignore[func-returns-value, method-assign]
    engine.warm_up(3)
    assert sizes == [1, 2, 3]


@pytest.mark.parametrize(("threads", "sessions"), [(1, 1), (2, 1), (7, 1), (8, 4), (16, 4)])
def test_lanes_of_several_threads_do_not_share_them(
    model: Path, monkeypatch: pytest.MonkeyPatch, threads: int, sessions: int
) -> None:
    made: list[int] = []

    def counted(*arguments: Any, **named: Any) -> ort.InferenceSession:
        made.append(arguments[1].intra_op_num_threads)
        return session(*arguments, **named)

    session = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", counted)
    engine = Engine(model, EngineOptions("cpu", threads=threads, lanes=4))
    assert made == [threads, *[max(1, threads // 4)] * sessions]
    images = np.random.default_rng(0).integers(0, 256, (2, *engine.input_size, 3), np.uint8)
    alone = np.stack([each.labels for each in engine.predict_alone(images)])
    assert len(engine.runs) == 4
    for run in engine.runs:
        assert (np.stack([each.labels for each in run(images)]) == alone).all()


def test_a_file_without_contract_is_refused(tmp_path: Path) -> None:
    path = onnx_models.save(tmp_path / "bare.onnx", metadata={})
    with pytest.raises(StartupError, match=r"bare\.onnx.*python -m export"):
        Engine(path, EngineOptions("cpu"))


def test_a_truncated_file_is_refused(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-50])
    with pytest.raises(StartupError, match=r"tiny\.onnx"):
        Engine(model, EngineOptions("cpu"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot read"):
        Engine(tmp_path / "none.onnx", EngineOptions("cpu"))


@needs_no_gpu
def test_cuda_that_cannot_load_refuses_to_start(model: Path) -> None:
    with pytest.raises(StartupError, match="--device cuda: ") as refused:
        Engine(model, EngineOptions("cuda"))
    assert "auto" in str(refused.value)


@needs_no_gpu
def test_auto_serves_on_the_cpu_and_says_why(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a warning only where ONNX Runtime has CUDA; on arm64, for example, it has none."""
    caplog.set_level("INFO")
    engine = Engine(model, EngineOptions("auto"))
    assert engine.on_cpu
    assert "serving on the CPU" in caplog.text


@pytest.mark.skipif(CUDA not in ort.get_available_providers(), reason="a build without CUDA")
@needs_no_gpu
def test_a_provider_that_is_compiled_in_may_still_be_unable_to_run(model: Path) -> None:
    assert Engine(model, EngineOptions("auto")).on_cpu


def test_cuda_neither_searches_for_long_nor_keeps_what_it_took() -> None:
    """ONNX Runtime's defaults for each of these have stalled or filled GPUs."""
    options = cuda_options(gpu=1, memory_limit_mb=0)
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert options["cudnn_conv_use_max_workspace"] == "0"
    assert options["device_id"] == "1"


def test_the_memory_limit_is_given_in_bytes() -> None:
    assert cuda_options(0, memory_limit_mb=2)["gpu_mem_limit"] == str(2 * 1024**2)
    assert "gpu_mem_limit" not in cuda_options(0, memory_limit_mb=0)


class Driver:
    """A stand-in for libcuda that reports the newest CUDA version it supports."""

    def __init__(self, version: int) -> None:
        self.version = version

    def cuDriverGetVersion(self, out: Any) -> int:  # noqa: N802 (NVIDIA's name)
        out._obj.value = self.version
        return 0


def test_a_driver_that_is_too_old_is_named_with_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxruntime.cuda_version", "13.0")
    problem = driver_problem(cast("ctypes.CDLL", Driver(12040)))
    assert problem is not None
    assert "supports CUDA 12.4" in problem
    assert "needs CUDA 13" in problem


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (13020, "supports CUDA 13.2; use the gpu image or extra"),
        (12020, "supports CUDA 12.2; use the gpu-cu12 image or extra, or update the driver to 580"),
        (11040, "supports CUDA 11.4; update the driver to 525"),
    ],
)
def test_the_image_that_fits_a_driver_is_named(version: int, advice: str) -> None:
    """Drivers 535 to 570 support CUDA 12 only: they need no update, but another image."""
    assert driver_advice(version).removesuffix(" or newer") == advice


@pytest.mark.parametrize("version", [13000, 13020, 14000])
def test_a_driver_of_the_same_major_version_or_newer_is_accepted(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.cuda_version", "13.0")
    assert driver_problem(cast("ctypes.CDLL", Driver(version))) is None
