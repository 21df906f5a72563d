"""OpenVINO: the same labels, one precision that is reported truly, and refusals with a reason."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fastapi.testclient import TestClient
from onnx import TensorProto, helper

from service.errors import StartupError
from service.http.app import create_app
from service.inference import models, openvino_cpu, sizes
from service.inference.contract import METADATA_KEY
from service.inference.cuda import cuda_problem
from service.inference.engine import CPU, Engine, EngineOptions
from service.inference.openvino_cpu import OPENVINO
from service.settings import Settings
from tests.service import onnx_models
from tests.service.web import photo, png, post

openvino = pytest.importorskip("openvino")
needs_no_gpu = pytest.mark.skipif(cuda_problem() is None, reason="a working GPU is present")
HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
NATIVE = "bf16" if HAS_BF16 else "fp32"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return onnx_models.save(tmp_path / "models" / "tiny.onnx", confidence=True, on_request=True)


def options(**changes: object) -> EngineOptions:
    return EngineOptions(**({"device": "openvino", "threads": 1} | changes))  # type: ignore[arg-type]


def with_determinant(path: Path) -> Path:
    """Compute the tiny model's lowest class, 0, as a determinant, which OpenVINO cannot do."""
    model = onnx.load(path)
    graph = model.graph
    graph.initializer.append(helper.make_tensor("zeros", TensorProto.FLOAT, [2, 2], [0.0] * 4))
    nodes = [
        helper.make_node("Det", ["zeros"], ["determinant"]),
        helper.make_node("Cast", ["determinant"], ["computed"], to=TensorProto.INT32),
    ]
    for node in graph.node:
        node.input[:] = ["computed" if name == "low" else name for name in node.input]
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (2, 2), (4, 2)])
def test_every_lane_gives_labels_and_confidence(model: Path, threads: int, lanes: int) -> None:
    """The images of a batch run one by one and come back in order."""
    engine = Engine(model, options(threads=threads, lanes=lanes))
    assert engine.provider == OPENVINO
    assert engine.lanes == max(1, threads // 2)
    images = np.random.default_rng(0).integers(0, 256, (3, *engine.input_size, 3), np.uint8)
    for predict in (*engine.runs, engine.predict_alone):
        for image, found in zip(images, predict(images, "confidence"), strict=True):
            assert (found.labels == onnx_models.expected(image)).all()
            assert (found.confidence == image[..., 0]).all()
        assert [each.confidence for each in predict(images)] == [None] * 3
    assert (engine.run(images) == onnx_models.expected(images)).all()
    engine.warm_up(2)


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (4, 2)])
def test_sizes_that_are_common_are_compiled_for(
    tmp_path: Path, threads: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, when they first come; other sizes share a model. In bfloat16 a change would show."""
    made: list[sizes.Size | None] = []
    compiled = openvino_cpu.OpenVino._compiled

    def noted(
        self: openvino_cpu.OpenVino, streams: int, size: sizes.Size | None, outputs: Any
    ) -> Any:
        made.append(size)
        return compiled(self, streams, size, outputs)

    monkeypatch.setattr(openvino_cpu.OpenVino, "_compiled", noted)
    file = onnx_models.save(tmp_path / "tiny.onnx", aligned=True, confidence=True)
    engine = Engine(file, options(threads=threads, lanes=lanes))
    made.clear()

    def run(height: int, width: int, times: int) -> list[sizes.Size | None]:
        """What a lane compiles while it runs photos of a size."""
        for _ in range(times):
            images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
            (found,) = engine.runs[-1](images, "confidence")
            assert (found.labels == onnx_models.expected(images[0])).all()
            assert found.confidence is not None
            assert (found.confidence == images[0, ..., 0]).all()
        new, made[:] = list(made), []
        return new

    assert run(49, 65, 5) == []  # the whole input has a model from the start
    assert run(33, 65, 5) == [None]  # one for any size
    assert run(49, 49, 3) == [(49, 49)]
    assert run(33, 65, 1) == []
    other = engine.runs[0](np.zeros((1, 49, 49, 3), np.uint8), "labels")
    assert not other[0].labels.any()


def test_a_common_size_that_cannot_be_compiled_for_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = openvino_cpu.OpenVino._compiled

    def refused(
        self: openvino_cpu.OpenVino, streams: int, size: sizes.Size | None, outputs: Any
    ) -> Any:
        if size == (49, 49):
            raise StartupError("out of memory")
        return compiled(self, streams, size, outputs)

    monkeypatch.setattr(openvino_cpu.OpenVino, "_compiled", refused)
    engine = Engine(onnx_models.save(tmp_path / "tiny.onnx", aligned=True), options())
    images = np.random.default_rng(0).integers(0, 256, (1, 49, 49, 3), np.uint8)
    for _ in range(4):
        assert (engine.run(images) == onnx_models.expected(images)).all()
    assert caplog.text.count("no model for photos of 49 x 49 pixels") == 1


def test_the_precision_in_use_is_openvinos_own_choice_unless_told(model: Path) -> None:
    assert Engine(model, options()).execution_precision == NATIVE
    assert Engine(model, options(precision="fp32")).execution_precision == "fp32"


def test_what_an_int8_file_leaves_in_float_runs_in_fp32_unless_told(tmp_path: Path) -> None:
    """bf16 would be converted to 8 bits and back at each quantized layer."""
    contract = onnx_models.contract(precision="int8").model_dump_json()
    file = onnx_models.save(tmp_path / "int8.onnx", {METADATA_KEY: contract})
    assert Engine(file, options()).execution_precision == "int8+fp32"
    if HAS_BF16:
        assert Engine(file, options(precision="bf16")).execution_precision == "int8+bf16"


def test_bf16_is_never_replaced_by_another_precision(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for bf16 is an error on a CPU that lacks it, and without OpenVINO."""
    if HAS_BF16:
        assert Engine(model, options(precision="bf16")).execution_precision == "bf16"
    else:
        with pytest.raises(StartupError, match="neither AMX nor AVX512-BF16"):
            Engine(model, options(precision="bf16"))
    monkeypatch.setattr(openvino_cpu, "problem", lambda: "openvino is not installed")
    with pytest.raises(StartupError, match="--precision bf16 needs OpenVINO: openvino is not"):
        Engine(model, options(device="auto", precision="bf16"))


@needs_no_gpu
def test_auto_takes_it_where_it_is_installed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine(model, options(device="auto")).provider == OPENVINO
    assert Engine(model, options(device="cpu")).provider == CPU
    monkeypatch.setattr(openvino_cpu, "problem", lambda: "openvino is not installed")
    assert Engine(model, options(device="auto")).provider == CPU
    with pytest.raises(StartupError, match="--device openvino: openvino is not installed"):
        Engine(model, options())


@needs_no_gpu
def test_files_that_it_cannot_read_are_refused_or_run_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If OpenVINO lacks an operator of the file, auto serves the file with ONNX Runtime."""
    path = with_determinant(onnx_models.save(tmp_path / "old.onnx"))
    with pytest.raises(StartupError, match=r"old\.onnx is not a model that OpenVINO can load"):
        Engine(path, options())
    caplog.set_level(logging.WARNING)
    assert Engine(path, options(device="auto")).provider == CPU
    assert "serving with ONNX Runtime" in caplog.text


def test_a_file_without_a_valid_contract_is_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"\x08\x07 and so on")
    bare = onnx_models.save(tmp_path / "bare.onnx", metadata={})
    altered = onnx_models.contract(graph_sha256="0" * 64).model_dump_json()
    damaged = onnx_models.save(tmp_path / "damaged.onnx", {METADATA_KEY: altered})
    for path, reason in ((junk, "deeplab.contract"), (bare, "export"), (damaged, "was damaged")):
        with pytest.raises(StartupError, match=rf"{path.name}.*{reason}"):
            Engine(path, options())


def test_a_second_start_takes_compiled_models_from_the_cache(model: Path, tmp_path: Path) -> None:
    cached = options(openvino_cache=tmp_path / "cache")
    Engine(model, cached)
    assert list((tmp_path / "cache").glob("*.blob"))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    engine = Engine(model, cached)
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    images = np.random.default_rng(0).integers(0, 256, (1, *engine.input_size, 3), np.uint8)
    assert (engine.run(images) == onnx_models.expected(images)).all()


def test_the_service_says_what_really_runs(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log, /models, the answer's headers and the metric all name it."""
    caplog.set_level(logging.INFO)
    settings = Settings(models=model.parent, device="openvino", threads=1)
    with TestClient(create_app(settings, models.load(settings))) as client:
        answer = post(client, png(photo()))
        (described,) = client.get("/models").json()["models"]
        metrics = client.get("/metrics").text
    assert answer.status_code == 200
    assert answer.headers["X-Execution-Provider"] == OPENVINO
    assert answer.headers["X-Execution-Precision"] == NATIVE
    assert described["execution_provider"] == OPENVINO
    assert described["execution_precision"] == NATIVE
    assert f'execution_precision="{NATIVE}"' in metrics
    assert f"serving tiny on OpenVINO in {NATIVE}" in caplog.text


def test_a_precision_that_no_engine_has_is_a_usage_error() -> None:
    with pytest.raises(ValueError, match="--precision bf16 needs --device openvino"):
        Settings(device="cpu", precision="bf16")
