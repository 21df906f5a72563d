"""Building, checking and writing the .onnx file.

The file is compared with PyTorch before it exists under its name: a failed
comparison leaves nothing behind.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from export import parity
from export.graph import LabelGraph
from model import checkpoint
from model.checkpoint import Card
from model.deeplab import DeepLabV3Plus
from service.contract import INPUT, LABELS, METADATA_KEY, Contract, InputSize, Parity

log = logging.getLogger("export")

OPSET = 18
LOGITS = "logits"  # compared during export, absent from the file


@dataclass(frozen=True)
class ExportOptions:
    """An operating point of a checkpoint."""

    output_stride: int | None = None  # None: the checkpoint's own
    size: tuple[int, int] | None = None  # (H, W); None: the checkpoint's crop size


def export(source: Path, target: Path, options: ExportOptions) -> Contract:
    """Export a checkpoint to `target` and return the contract written into it.

    Raises CheckpointError for an unreadable checkpoint and ExportError when
    the file disagrees with PyTorch; `target` is then left as it was.
    """
    card = checkpoint.read_card(source)
    net = checkpoint.load(source, options.output_stride)
    size = options.size or net.config.crop_size
    graph = LabelGraph(net).eval()
    proto = build(graph, size)
    measured = parity.compare(graph, proto, size, pad=pad_color(net))
    parity.require(measured, parity.MIN_AGREEMENT_FP32)
    contract = _contract(card, net, size, checkpoint.digest(source), measured)
    write(strip(proto), contract, target)
    return contract


def build(graph: LabelGraph, size: tuple[int, int]) -> onnx.ModelProto:
    """Trace `graph` for images of `size` (H, W) and any batch; checked by onnx itself."""
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros((2, *size, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own dependencies
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LABELS, LOGITS],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.checker.check_model(proto, full_check=True)
    return proto


def strip(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the logits output, and the exporter's notes: source paths and stack traces."""
    final = onnx.ModelProto()
    final.CopyFrom(proto)
    (logits,) = (output for output in final.graph.output if output.name == LOGITS)
    final.graph.output.remove(logits)
    del final.metadata_props[:]
    final.doc_string = final.graph.doc_string = ""
    del final.graph.metadata_props[:]
    described = (*final.graph.node, *final.graph.input, *final.graph.output)
    for part in (*described, *final.graph.value_info, *final.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return final


def write(proto: onnx.ModelProto, contract: Contract, target: Path) -> None:
    """Write the file atomically, the contract in its metadata."""
    onnx.helper.set_model_props(proto, {METADATA_KEY: contract.model_dump_json()})
    onnx.checker.check_model(proto, full_check=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(proto.SerializeToString(deterministic=True))
    checkpoint.replace_durably(partial, target)


def pad_color(net: DeepLabV3Plus) -> tuple[int, int, int]:
    """The mean pixel, rounded to what a uint8 image can hold."""
    red, green, blue = (math.floor(value + 0.5) for value in net.config.mean)
    return red, green, blue


def _contract(
    card: Card, net: DeepLabV3Plus, size: tuple[int, int], digest: str, measured: Parity
) -> Contract:
    return Contract(
        classes=card.classes,
        palette=card.palette,
        input=InputSize(policy="fixed", height=size[0], width=size[1], pad=pad_color(net)),
        backbone=net.config.backbone,
        output_stride=net.config.output_stride,
        checkpoint_sha256=digest,
        metrics=card.metrics,
        parity=measured,
    )
