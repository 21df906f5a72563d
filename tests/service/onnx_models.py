"""Tiny .onnx models for the service's tests, built with the onnx package.

The "network" looks at the red channel: 0-84 is class 0, 85-169 class 1,
170-255 class 2. Any mistake in channel order, padding or cropping shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export import optional
from service.inference.contract import (
    CONFIDENCE,
    INPUT,
    LABELS,
    METADATA_KEY,
    PROBABILITIES,
    WITH_CONFIDENCE,
    Calibration,
    Contract,
    InputSize,
    Parity,
)

CLASSES = ("background", "dim", "bright")
PALETTE = ((0, 0, 0), (200, 0, 0), (0, 200, 0))
SIZE = (48, 64)
ALIGNED = InputSize(
    policy="aligned", height=49, width=65, multiple=16, least=(33, 49), pad=(0, 0, 0)
)

Shape = list[str | int | None]


def contract(**changes: object) -> Contract:
    """The contract of the tiny model, with fields changed."""
    fields: dict[str, object] = {
        "classes": CLASSES,
        "palette": PALETTE,
        "input": InputSize(policy="fixed", height=SIZE[0], width=SIZE[1], pad=(0, 0, 0)),
        "backbone": "threshold",
        "output_stride": 16,
        "checkpoint_sha256": "0" * 64,
        "parity": Parity(images=1, pixels=1, agreement=1.0, max_logit_error=0.0, logit_std=1.0),
    }
    return Contract.model_validate(fields | changes)


def expected(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The tiny model's labels for (H, W, 3): the class of each pixel."""
    return (image[..., 0] // 85).clip(0, 2).astype(np.uint8)


def save(
    path: Path,
    metadata: dict[str, str] | None = None,
    *,
    confidence: bool = False,
    on_request: bool = False,
    probabilities: bool = False,
    calibration: Calibration | None = None,
    earlier: bool = False,
    brightest: int = 2,
    aligned: bool = False,
) -> Path:
    """Write the tiny model; by default with its contract in the metadata.

    `probabilities`: at the top left of every 4 x 4 pixels give red for `dim`, the rest of 255 for
    `background`, and nothing for `bright`.
    `confidence`: give the red channel itself as the confidence; `on_request`: as new
    exports do, only if the caller asks for it; `earlier`: as exports of November 2026 did.
    `brightest`: the highest class it gives, to tell two files apart. `aligned`: take photos
    of the sizes of ALIGNED.
    """
    sides: Shape = ["height", "width"] if aligned else [*SIZE]
    graph = _graph(sides, confidence=confidence, probabilities=probabilities, brightest=brightest)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if on_request:
        model = optional.on_request(model)
    if earlier:
        choose_by_if(model.graph)
    onnx.checker.check_model(model, full_check=True)
    placing = "corners" if aligned else "centres"
    described = contract(
        confidence=confidence,
        probability_grid=placing if probabilities else None,
        calibration=calibration,
        **({"input": ALIGNED} if aligned else {}),
    )
    default = {METADATA_KEY: described.model_dump_json()}
    helper.set_model_props(model, default if metadata is None else metadata)
    onnx.save(model, path)
    return path


def _graph(
    sides: Shape, *, confidence: bool, probabilities: bool, brightest: int
) -> onnx.GraphProto:
    shape: Shape = ["batch", *sides]
    nodes = [
        helper.make_node("Gather", [INPUT, "red"], ["value"], axis=3),
        helper.make_node("Cast", ["value"], ["wide"], to=TensorProto.INT32),
        helper.make_node("Div", ["wide", "step"], ["steps"]),
        helper.make_node("Clip", ["steps", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], [LABELS], to=TensorProto.UINT8),
    ]
    results = [helper.make_tensor_value_info(LABELS, TensorProto.UINT8, shape)]
    if confidence:
        nodes.append(helper.make_node("Identity", ["value"], [CONFIDENCE]))
        results.append(helper.make_tensor_value_info(CONFIDENCE, TensorProto.UINT8, shape))
    if probabilities:
        nodes += _probability_nodes()
        coarse: Shape = ["batch", 3, *(n // 4 if isinstance(n, int) else None for n in sides)]
        results.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.UINT8, coarse))
    return helper.make_graph(
        nodes,
        "threshold",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [*shape, 3])],
        results,
        _constants(brightest, probabilities=probabilities),
    )


def _probability_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Slice", ["wide", "from", "to", "axes", "steps_of"], ["few"]),
        helper.make_node("Sub", ["all", "few"], ["rest"]),
        helper.make_node("Sub", ["few", "few"], ["none"]),
        *(
            helper.make_node("Unsqueeze", [name, "axis"], [f"{name}_plane"])
            for name in ("rest", "few", "none")
        ),
        helper.make_node("Concat", ["rest_plane", "few_plane", "none_plane"], ["planes"], axis=1),
        helper.make_node("Cast", ["planes"], [PROBABILITIES], to=TensorProto.UINT8),
    ]


def _constants(brightest: int, *, probabilities: bool) -> list[onnx.TensorProto]:
    scalars = {"red": 0, "step": 85, "low": 0, "high": brightest, "all": 255}
    lists = {"from": [0, 0], "to": [2**31, 2**31], "axes": [1, 2], "steps_of": [4, 4], "axis": [1]}
    return [
        *(helper.make_tensor(name, TensorProto.INT32, [], [at]) for name, at in scalars.items()),
        *(
            helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
            for name, values in (lists if probabilities else {}).items()
        ),
    ]


def choose_by_if(graph: onnx.GraphProto) -> None:
    """Put the confidence into an If whose other branch is zeros, in place: an earlier format."""
    only = graph.node.pop()
    image: Shape = ["batch", *SIZE]
    outputs = [
        helper.make_tensor_value_info(f"{name}_{CONFIDENCE}", TensorProto.UINT8, image)
        for name in ("asked", "no")
    ]
    only.output[:] = [outputs[0].name]
    zeros = [
        helper.make_node("Shape", [LABELS], ["labels_shape"]),
        helper.make_node(
            "ConstantOfShape",
            ["labels_shape"],
            [outputs[1].name],
            value=helper.make_tensor("nothing", TensorProto.UINT8, [1], [0]),
        ),
    ]
    graph.node.append(
        helper.make_node(
            "If",
            [WITH_CONFIDENCE],
            [CONFIDENCE],
            then_branch=helper.make_graph([only], "certain", [], outputs[:1]),
            else_branch=helper.make_graph(zeros, "not_asked", [], outputs[1:]),
        )
    )
    graph.input.append(helper.make_tensor_value_info(WITH_CONFIDENCE, TensorProto.BOOL, []))
    graph.initializer.append(helper.make_tensor(WITH_CONFIDENCE, TensorProto.BOOL, [], [True]))
