"""The tail of a file is everything after the network, however logits are enlarged."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from export.tail import PHASE_WEIGHTS, learned, tail


def operators(file: Path) -> set[str]:
    model = onnx.load(file)
    names = tail(model)
    assert not any(learned(node) for node in model.graph.node if node.name in names)
    return {node.op_type for node in model.graph.node if node.name in names}


@pytest.mark.slow
def test_resized_logits_belong_to_the_tail(exported: Path) -> None:
    assert {"Resize", "ArgMax", "Cast"} <= operators(exported)


@pytest.mark.slow
def test_logits_in_phases_belong_to_the_tail(phased: Path) -> None:
    """A convolution with fixed weights takes the place of the resizing."""
    found = operators(phased)
    assert {"Conv", "ArgMax", "Cast", "Transpose"} <= found
    assert "Resize" not in found


@pytest.mark.slow
def test_only_the_networks_convolutions_count_as_learned(exported: Path, phased: Path) -> None:
    plain, fast = (onnx.load(path).graph for path in (exported, phased))
    counts = [sum(node.op_type == "Conv" for node in graph.node) for graph in (plain, fast)]
    assert counts[1] == counts[0] + 1
    assert sum(map(learned, fast.node)) == sum(map(learned, plain.node)) == counts[0]
    assert PHASE_WEIGHTS in {tensor.name for tensor in fast.initializer}
