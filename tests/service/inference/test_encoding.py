"""ONNX files are read and cut without the onnx package, and onnx agrees with the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from service.inference.contract import CONFIDENCE, INPUT, LABELS, WITH_CONFIDENCE
from service.inference.encoding import without_input
from tests.service import onnx_models


def test_an_input_with_a_default_becomes_a_constant(tmp_path: Path) -> None:
    """The result lacks the input's declaration. Everything else is what the onnx package reads."""
    path = onnx_models.save(tmp_path / "tiny.onnx", confidence=True, on_request=True)
    expected = onnx.load(path)
    (declared,) = (each for each in expected.graph.input if each.name == WITH_CONFIDENCE)
    expected.graph.input.remove(declared)
    found = onnx.load_from_string(without_input(path.read_bytes(), WITH_CONFIDENCE))
    assert found == expected
    onnx.checker.check_model(found, full_check=True)


def test_the_file_still_runs_and_gives_its_confidence(tmp_path: Path) -> None:
    path = onnx_models.save(tmp_path / "tiny.onnx", confidence=True, on_request=True)
    session = ort.InferenceSession(
        without_input(path.read_bytes(), WITH_CONFIDENCE), providers=["CPUExecutionProvider"]
    )
    assert not session.get_overridable_initializers()
    image = np.random.default_rng(0).integers(0, 256, (2, *onnx_models.SIZE, 3), np.uint8)
    labels, confidence = session.run([LABELS, CONFIDENCE], {INPUT: image})
    assert (labels == onnx_models.expected(image)).all()
    assert (confidence == image[..., 0]).all()


def test_a_file_without_that_input_keeps_every_byte(tmp_path: Path) -> None:
    data = onnx_models.save(tmp_path / "tiny.onnx").read_bytes()
    assert without_input(data, WITH_CONFIDENCE) == data
