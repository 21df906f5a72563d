"""The confidence is only computed when the caller asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.optional import on_request
from export.tail import tail
from export.writer import ExportOptions, export
from service.inference.contract import CONFIDENCE, INPUT, LABELS, WITH_CONFIDENCE
from tests.export.conftest import SIZE
from tests.service import onnx_models

REFUSED = {WITH_CONFIDENCE: np.array(False)}


def session(
    model: onnx.ModelProto, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    options = options or ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options)


@pytest.fixture(scope="module")
def sure(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("sure") / "sure.onnx"
    export(tiny, path, ExportOptions(confidence=True))
    return onnx.load(path)


@pytest.mark.slow
def test_callers_get_the_confidence_by_default(sure: onnx.ModelProto) -> None:
    loaded = session(sure)
    assert [each.name for each in loaded.get_inputs()] == [INPUT]
    assert [each.name for each in loaded.get_overridable_initializers()] == [WITH_CONFIDENCE]
    image = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    labels, confidence = loaded.run(None, {INPUT: image})
    assert confidence.shape == labels.shape
    assert confidence.min() > 0


@pytest.mark.slow
def test_a_refused_confidence_is_empty_and_the_labels_are_the_same(sure: onnx.ModelProto) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    labels, _ = session(sure).run(None, {INPUT: image})
    found = session(sure).run(None, {INPUT: image, **REFUSED})
    assert (found[0] == labels).all()
    assert found[1].shape == (0, *SIZE)


def beside_the_labels(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that the labels do not need."""
    needed, names = {LABELS}, set()
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
        else:
            names.add(node.name)
    return names


@pytest.mark.slow
def test_a_refused_confidence_costs_nothing(sure: onnx.ModelProto, tmp_path: Path) -> None:
    """ONNX Runtime's profile shows that nodes which the labels do not need output no bytes."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    loaded = session(sure, options)
    loaded.run([LABELS], {INPUT: np.zeros((2, *SIZE, 3), np.uint8), **REFUSED})
    events = json.loads(Path(loaded.end_profiling()).read_text(encoding="utf-8"))
    sizes = {
        event["name"].removesuffix("_kernel_time"): int(event["args"]["output_size"])
        for event in events
        if event["name"].endswith("_kernel_time")
    }
    beside = {sizes[name] for name in beside_the_labels(sure)}
    assert beside == {0, 8}  # 8: the end of the slice, one int64
    assert {sizes[node.name] for node in sure.graph.node if node.op_type == "Exp"} == {0}


@pytest.mark.slow
def test_the_confidence_uses_no_operator_that_other_engines_lack(sure: onnx.ModelProto) -> None:
    """No file has an If, which OpenVINO cannot read; optional nodes follow the network."""
    operators = {node.op_type for node in sure.graph.node}
    assert operators.isdisjoint({"If", "Loop", "Scan"})
    assert beside_the_labels(sure) <= tail(sure)


def test_a_file_without_confidence_stays_as_it_is(tmp_path: Path) -> None:
    plain = onnx.load(onnx_models.save(tmp_path / "plain.onnx"))
    assert on_request(plain) is plain
    assert [output.name for output in plain.graph.output] == [LABELS]


def test_the_value_that_confidence_and_labels_share_is_sliced_once(tmp_path: Path) -> None:
    """The tiny model has one such value, and no other tensor is sliced."""
    path = onnx_models.save(tmp_path / "tiny.onnx", confidence=True, on_request=True)
    slices = [node for node in onnx.load(path).graph.node if node.op_type == "Slice"]
    assert [node.input[0] for node in slices] == ["value"]
    assert CONFIDENCE in {output.name for output in onnx.load(path).graph.output}
