"""The tail of a file is everything after the network, however logits are enlarged."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from export.tail import PHASE_WEIGHTS, learned, tail

pytestmark = pytest.mark.slow


def operators(file: Path) -> set[str]:
    model = onnx.load(file)
    names = tail(model)
    assert not any(learned(node) for node in model.graph.node if node.name in names)
    return {node.op_type for node in model.graph.node if node.name in names}


def test_logits_are_resized_or_convolved_with_fixed_weights(exported: Path, phased: Path) -> None:
    assert {"Resize", "ArgMax", "Cast"} <= operators(exported)
    assert {"Conv", "ArgMax", "Cast", "Transpose"} <= operators(phased)
    assert "Resize" not in operators(phased)


def test_only_the_networks_convolutions_are_learned(exported: Path, phased: Path) -> None:
    plain, fast = (onnx.load(path).graph for path in (exported, phased))
    counts = [sum(node.op_type == "Conv" for node in graph.node) for graph in (plain, fast)]
    assert counts[1] == counts[0] + 1
    assert sum(map(learned, fast.node)) == sum(map(learned, plain.node)) == counts[0]
    assert PHASE_WEIGHTS in {tensor.name for tensor in fast.initializer}
