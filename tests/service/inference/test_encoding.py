"""ONNX files are read and cut without the onnx package, and onnx agrees with the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from service.inference.contract import CONFIDENCE, INPUT, LABELS, WITH_CONFIDENCE
from service.inference.encoding import of_one_size, without_input
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


def test_nodes_that_read_a_side_of_the_image_become_constants() -> None:
    """Other nodes stay: those of other tensors, of the batch, and of several sides at once."""
    reads = [("sides", INPUT, 1, 3), ("batch", INPUT, 0, 1), ("other", "copy", 1, 2)]
    replaced = {"height": (1, 513), "width": (2, 385)}
    reads += [(name, INPUT, axis, axis + 1) for name, (axis, _) in replaced.items()]
    nodes = [helper.make_node("Identity", [INPUT], ["copy"])]
    nodes += [
        helper.make_node("Shape", [source], [name], start=start, end=end)
        for name, source, start, end in reads
    ]
    image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", "h", "w", 3])
    results = [helper.make_tensor_value_info(each[0], TensorProto.INT64, [None]) for each in reads]
    model = helper.make_model(
        helper.make_graph(nodes, "sides", [image], results),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    found = onnx.load_from_string(of_one_size(model.SerializeToString(), INPUT, (513, 385)))
    assert [node.output[0] for node in found.graph.node] == ["copy", "sides", "batch", "other"]
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in found.graph.initializer}
    assert {name: values.tolist() for name, values in constants.items()} == {
        name: [side] for name, (_, side) in replaced.items()
    }
    onnx.checker.check_model(found, full_check=True)
