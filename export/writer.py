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
from typing import Literal

import onnx
import torch
from torch.export import Dim

from export import parity, quantize
from export.best_iou import measured as measured_best_iou
from export.graph import HalfPrecision, LabelGraph, PhasedGraph, logit_spacing
from export.optional import on_request
from export.quantize import Quantization
from export.resizes import constant_scales, drop_unused
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
    METADATA_KEY,
    PROBABILITIES,
    BestIou,
    Contract,
    InputSize,
    Parity,
)
from service.inference.digest import contract_digest, graph_digest

log = logging.getLogger("export")

OPSET = 18
SCORES = "scores"  # compared during export, absent from the file
MIN_SIDE = 33  # two pixels at output stride 32

Size = tuple[int, int]
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class ExportOptions:
    """An operating point of a checkpoint."""

    output_stride: int | None = None  # None: the checkpoint's own
    size: Size | None = None  # (H, W); None: the checkpoint's crop size
    dynamic: bool = False  # any H and W; `size` is then what photos are fitted into
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
    DatasetError for a validation set of other classes and ParityError when the
    file disagrees with PyTorch; `target` is then left as it was.
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
    final = build(fast, size, dynamic=options.dynamic)
    if options.quantization is not None:
        final = quantize.quantized(final, contract.input, options.quantization)
    final = on_request(final)
    log.info("comparing the file with PyTorch")
    measured = parity.compare(truth, final, contract.input, options.dynamic)
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


def build(graph: LabelGraph, size: Size, *, dynamic: bool = False) -> onnx.ModelProto:
    """Trace `graph` for any batch of images of `size` (H, W), or of any size, and check it."""
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros((2, *size, graph.net.config.channels), dtype=torch.uint8)
    shapes = {0: Dim("batch")}
    if dynamic:
        shapes |= {1: Dim("height", min=MIN_SIDE), 2: Dim("width", min=MIN_SIDE)}
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
    spread_softmax(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


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
    fast = rewritten(net) if options.precision == "fp32" else rewritten(net, strip_bytes=None)
    if options.precision == "fp16":  # for GPUs: their Resize is fast, and rounds in float32
        return _graph(HalfPrecision(fast), options, found)
    graph = _graph(fast, options, found)
    if graph.single_pass and not options.dynamic and logit_spacing(net, size):
        asked = {"confidence": options.confidence, "probabilities": options.probabilities}
        return PhasedGraph(fast, size, **asked, best_iou=found).eval()
    return graph


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
            policy="dynamic" if options.dynamic else "fixed",
            height=size[0],
            width=size[1],
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
