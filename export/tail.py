"""Find the node in an ONNX graph that produces the logits."""

from __future__ import annotations

import onnx

from service.inference.contract import LABELS, OPTIONAL

PHASE_WEIGHTS = "phase_weights"  # an initializer: of the convolution that enlarges logits


def learned(node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution of the network."""
    return node.op_type == "Conv" and PHASE_WEIGHTS not in node.input


def tail(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes between the network's last convolution and the outputs."""
    producers = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    waiting = [LABELS, *OPTIONAL]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and not learned(node) and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return found
