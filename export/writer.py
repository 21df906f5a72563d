"""Build, check and write the .onnx file.

The file is compared with PyTorch before it gets its name; a failed comparison
leaves nothing behind.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch.export import Dim

from export import parity, quantize
from export.best_iou import measured as measured_best_iou
from export.graph import HalfPrecision, LabelGraph, PhasedGraph, logit_spacing
from export.optional import on_request
from export.quantize import Quantization
from export.resizes import constant_scales, drop_unused, keep_batch
from export.rewrite import rewritten
from export.softmax import spread_softmax
from model import checkpoint, files
from model.checkpoint import Card
from model.data.dataset import Dataset
from model.data.pairs import expect_samples
from model.evaluate.evaluation import check_classes
from model.network.deeplab import DeepLabV3Plus
from service.inference.contract import (
    CONFIDENCE,
    INPUT,
    LABELS,
    LEAST_SIDE,
    METADATA_KEY,
    PROBABILITIES,
    BestIou,
    Contract,
    InputSize,
    Parity,
    SizePolicy,
)
from service.inference.digest import contract_digest, graph_digest

log = logging.getLogger("export")

OPSET = 18
SCORES = "scores"  # compared during export, absent from the file
ALIGNED_EXAMPLE = (LEAST_SIDE + 16, LEAST_SIDE + 32)  # below the largest (H, W)
LEAST = 5 / 8  # of a side, if photos are aligned: panoramas are padded to it

Size = tuple[int, int]
Precision = Literal["fp32", "fp16", "int8"]


class PolicyError(ValueError):
    """A network cannot take photos as requested."""


@dataclass(frozen=True)
class ExportOptions:
    """An operating point of a checkpoint."""

    output_stride: int | None = None  # None: the checkpoint's own
    size: Size | None = None  # (H, W); None: the checkpoint's crop size
    policy: SizePolicy = "fixed"  # otherwise `size` is what photos are fitted into
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    confidence: bool = False
    probabilities: bool = False
    best_iou: tuple[Path, ...] = ()  # photos to maximise the expected IoU on; empty: do not
    precision: Precision = "fp32"
    quantization: Quantization | None = None  # required for int8
    validation: Dataset | None = None  # where the change of mIoU is measured


def export(source: Path, target: Path, options: ExportOptions) -> Contract:
    """Export a checkpoint to `target` and return the contract written into it.

    The contract's comparison is also written beside the file, as
    `NAME.parity.json`. Raises CheckpointError for an unreadable checkpoint,
    DatasetError for a validation set of other classes, PolicyError for a size that the
    network cannot align, and ParityError when the file disagrees with PyTorch;
    `target` is then left as it was.
    """
    card = checkpoint.read_card(source)
    net = checkpoint.load(source, options.output_stride)
    if options.validation is not None:
        check_classes(card.classes, options.validation)
        expect_samples(options.validation, card.model.samples)
    size = options.size or net.config.crop_size
    contract = _contract(card, net, size, checkpoint.digest(source), options)
    if options.best_iou:
        log.info("measuring probabilities on photos, for the best expected IoU")
        found = measured_best_iou(_probing(net, options), options.best_iou, contract.input)
        contract = contract.model_copy(update={"best_iou": found})
    truth = _graph(net, options, contract.best_iou)
    fast = _fast_graph(net, size, options, contract.best_iou)
    final = build(fast, size, options.policy)
    if options.quantization is not None:
        final = quantize.quantized(final, contract.input.whole, options.quantization)
    final = on_request(final)
    log.info("comparing the file with PyTorch")
    measured = parity.compare(truth, final, contract.input)
    if options.validation is not None:
        log.info("measuring mIoU of both on %d photos", len(options.validation.pairs))
        measured = parity.with_miou(measured, truth, final, contract.input, options.validation)
    parity.require(measured, options.precision)
    final = strip(final)
    sealed = {"parity": measured, "graph_sha256": graph_digest(serialized(final))}
    contract = contract.model_copy(update=sealed)
    digest = contract_digest(contract.model_dump_json())
    contract = contract.model_copy(update={"contract_sha256": digest})
    write(final, contract, target)
    return contract


def build(graph: LabelGraph, size: Size, policy: SizePolicy = "fixed") -> onnx.ModelProto:
    """Trace `graph` for any batch of images of `size` (H, W), or of any size, and check it."""
    # Two images: a batch of one would be taken for a constant. So would the largest sides.
    sides = ALIGNED_EXAMPLE if policy == "aligned" else size
    example = torch.zeros((2, *sides, graph.net.config.channels), dtype=torch.uint8)
    shapes = {0: Dim("batch")}
    if policy != "fixed":
        for axis, name, side in ((1, "height", size[0]), (2, "width", size[1])):
            most = {"max": side} if policy == "aligned" else {}
            shapes[axis] = Dim(name, min=LEAST_SIDE, **most)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own dependencies
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[
                LABELS,
                SCORES,
                *([CONFIDENCE] if graph.confidence else []),
                *([PROBABILITIES] if graph.probabilities else []),
            ],
            dynamic_shapes=(shapes,),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    constant_scales(proto)
    keep_batch(proto)
    spread_softmax(proto)
    if policy != "fixed":
        _name_sides(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _name_sides(proto: onnx.ModelProto) -> None:
    """Name the sides of outputs, which the tracer describes by long formulas, in place."""
    of_photo, of_grid = ("height", "width"), ("rows", "columns")
    names = {LABELS: of_photo, CONFIDENCE: of_photo, PROBABILITIES: of_grid}
    for output in proto.graph.output:
        sides = output.type.tensor_type.shape.dim[-2:]
        for side, name in zip(sides, names.get(output.name, ()), strict=False):
            side.dim_param = name


def strip(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the scores output, and the exporter's notes: source paths and stack traces."""
    final = onnx.ModelProto()
    final.CopyFrom(proto)
    (scores,) = (output for output in final.graph.output if output.name == SCORES)
    final.graph.output.remove(scores)
    drop_unused(final.graph)
    del final.metadata_props[:]
    final.doc_string = final.graph.doc_string = ""
    del final.graph.metadata_props[:]
    described = (*final.graph.node, *final.graph.input, *final.graph.output)
    for part in (*described, *final.graph.value_info, *final.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return final


def write(proto: onnx.ModelProto, contract: Contract, target: Path) -> None:
    """Write the file atomically, the contract in its metadata, and its certificate beside it."""
    onnx.helper.set_model_props(proto, {METADATA_KEY: contract.model_dump_json()})
    onnx.checker.check_model(proto, full_check=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    certificate = contract.parity.model_dump_json(indent=2) + "\n"
    contents = {  # the file last: where it is, its certificate is
        target.with_suffix(".parity.json"): certificate.encode(),
        target: serialized(proto),
    }
    files.write(contents)


def serialized(proto: onnx.ModelProto) -> bytes:
    """The bytes of the file; the same graph gives the same ones."""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def pad_color(net: DeepLabV3Plus) -> tuple[int, ...]:
    """The mean pixel, rounded to uint8."""
    return tuple(math.floor(value + 0.5) for value in net.config.mean)


def _graph(net: DeepLabV3Plus, options: ExportOptions, found: BestIou | None) -> LabelGraph:
    return LabelGraph(
        net,
        scales=options.scales,
        flip=options.flip,
        confidence=options.confidence,
        probabilities=options.probabilities,
        best_iou=found,
    ).eval()


def _probing(net: DeepLabV3Plus, options: ExportOptions) -> LabelGraph:
    """A graph whose last output is the probabilities."""
    return _graph(net, replace(options, probabilities=True), None)


def _fast_graph(
    net: DeepLabV3Plus, size: Size, options: ExportOptions, found: BestIou | None
) -> LabelGraph:
    """The graph to export: what `_graph` computes, rewritten for speed."""
    # Ranges of int8 are of whole maps.
    aligned = size if options.policy == "aligned" else None
    strips = {} if options.precision == "fp32" else {"strip_bytes": None}
    fast = rewritten(net, aligned=aligned, **strips)
    if options.precision == "fp16":  # for GPUs: their Resize is fast, and rounds in float32
        return _graph(HalfPrecision(fast), options, found)
    graph = _graph(fast, options, found)
    if graph.single_pass and options.policy != "dynamic" and logit_spacing(net, size):
        asked = {"confidence": options.confidence, "probabilities": options.probabilities}
        return PhasedGraph(fast, size, **asked, best_iou=found).eval()
    return graph


def _alignment(net: DeepLabV3Plus, size: Size) -> dict[str, Any]:
    """The fields of an aligned input; raises PolicyError."""
    stride = net.config.output_stride
    small = size[0] <= ALIGNED_EXAMPLE[0] or size[1] <= ALIGNED_EXAMPLE[1]
    if small or not net.config.align_corners or any(side % stride != 1 for side in size):
        raise PolicyError(
            f"{size[0]}x{size[1]} cannot be aligned: the network must align the corners of its "
            f"maps, and both sides be one more than a multiple of the output stride, {stride}, "
            f"and larger than {ALIGNED_EXAMPLE[0]}x{ALIGNED_EXAMPLE[1]}"
        )
    least = tuple(int(LEAST * side) // stride * stride + 1 for side in size)
    return {"multiple": stride, "least": tuple(max(LEAST_SIDE, side) for side in least)}


def _grid(net: DeepLabV3Plus) -> Literal["corners", "centres"]:
    return "corners" if net.config.align_corners else "centres"


def _contract(
    card: Card, net: DeepLabV3Plus, size: Size, digest: str, options: ExportOptions
) -> Contract:
    """The contract of a file whose comparison is still to come."""
    return Contract(
        classes=card.classes,
        palette=card.palette,
        input=InputSize(
            policy=options.policy,
            height=size[0],
            width=size[1],
            **(_alignment(net, size) if options.policy == "aligned" else {}),
            pad=pad_color(net),
            sample_range=net.config.sample_range,
        ),
        backbone=net.config.backbone,
        output_stride=net.config.output_stride,
        scales=options.scales,
        flip=options.flip,
        precision=options.precision,
        confidence=options.confidence,
        probability_grid=_grid(net) if options.probabilities else None,
        checkpoint_sha256=digest,
        metrics=card.metrics,
        parity=Parity(images=1, pixels=1, agreement=0, max_logit_error=0, logit_std=0),
    )
