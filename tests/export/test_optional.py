"""The confidence is computed where it is asked for, and costs nothing where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.optional import on_request, without
from export.tail import tail
from export.writer import ExportOptions, export
from service.inference.contract import CONFIDENCE, INPUT, LABELS, WITH_CONFIDENCE
from tests.export.conftest import SIZE
from tests.service import onnx_models


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options)


@pytest.fixture(scope="module")
def sure(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("sure") / "sure.onnx"
    export(tiny, path, ExportOptions(confidence=True))
    return onnx.load(path)


@pytest.mark.slow
def test_a_caller_that_knows_nothing_of_it_gets_it(sure: onnx.ModelProto) -> None:
    loaded = session(sure)
    assert [each.name for each in loaded.get_inputs()] == [INPUT]
    assert [each.name for each in loaded.get_overridable_initializers()] == [WITH_CONFIDENCE]
    image = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    labels, confidence = loaded.run(None, {INPUT: image})
    assert confidence.shape == labels.shape
    assert confidence.min() > 0


@pytest.mark.slow
def test_refused_it_is_zeros_and_the_labels_stay(sure: onnx.ModelProto) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    labels, _ = session(sure).run(None, {INPUT: image})
    asked = {INPUT: image, WITH_CONFIDENCE: np.array(False)}
    for found in (session(sure).run(None, asked), session(without(sure)).run(None, {INPUT: image})):
        assert (found[0] == labels).all()
        assert found[1].shape == labels.shape
        assert not found[1].any()


@pytest.mark.slow
def test_nothing_of_it_is_left_beside_the_choice(sure: onnx.ModelProto, exported: Path) -> None:
    """The nodes outside the If are those of a file without confidence."""
    plain = onnx.load(exported)
    operators = [node.op_type for node in sure.graph.node]
    assert operators == [*(node.op_type for node in plain.graph.node), "If"]
    assert tail(sure) == tail(plain) | {CONFIDENCE}


def test_a_file_without_confidence_stays_as_it_is(tmp_path: Path) -> None:
    plain = onnx.load(onnx_models.save(tmp_path / "plain.onnx"))
    assert on_request(plain) is plain
    assert [output.name for output in plain.graph.output] == [LABELS]
