"""Describe an exported file: `python -m export.describe FILE.onnx [--json]`.

It prints contract, parity certificate, operators, multiply-adds, parameters and size,
or one error for a file that is damaged or was not made by `python -m export`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from export.tail import learned
from service.inference.contract import INPUT, METADATA_KEY, Contract, ContractError, parse
from service.inference.digest import contract_digest, graph_digest
from service.inference.encoding import of_one_size


class DescribeError(ValueError):
    """A file cannot be described; the message says why."""


def load(path: Path) -> tuple[onnx.ModelProto, Contract]:
    """Read a file and its contract; raises DescribeError."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        metadata = {prop.key: prop.value for prop in model.metadata_props}
        contract = parse(metadata)
    except FileNotFoundError as error:
        raise DescribeError(f"{error.filename or path} does not exist") from None
    except OSError as error:
        raise DescribeError(f"{path}: {error.strerror}") from None
    except ContractError as error:
        raise DescribeError(f"{path}: {error}") from None
    except (
        DecodeError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        UnicodeDecodeError,  # of a name, or of a message that quotes one
    ) as error:
        reason = " ".join(str(error).split())  # a line of its own: the checker's have several
        raise DescribeError(f"{path} is damaged, or no ONNX file: {reason}") from None
    for noted, digest in (
        (contract.graph_sha256, graph_digest(path.read_bytes())),
        (contract.contract_sha256, contract_digest(metadata[METADATA_KEY])),
    ):
        if noted not in (None, digest):
            raise DescribeError(f"{path} was changed after its export: its digest does not match")
    return model, contract


def describe(path: Path) -> dict[str, Any]:
    """Everything about a file, as JSON; raises DescribeError."""
    model, contract = load(path)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "opset": max(entry.version for entry in model.opset_import if entry.domain == ""),
        "contract": contract.model_dump(mode="json"),
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "parameters": sum(prod(tensor.dims) for tensor in model.graph.initializer),
        "multiply_adds": None if contract.output_stride is None else multiply_adds(model, contract),
    }


def multiply_adds(model: onnx.ModelProto, contract: Contract) -> int:
    """Multiply-adds of the network for one image of the contract's size (logical count)."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model if contract.input.policy == "fixed" else _of_one_size(model, contract))
    (image,) = (value for value in sized.graph.input if value.name == INPUT)
    dims = image.type.tensor_type.shape.dim
    for dim, side in zip(
        dims, (1, contract.input.height, contract.input.width, contract.input.channels), strict=True
    ):
        dim.dim_value = side
    del sized.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    weights = _weight_shapes(inferred)
    total = 0
    for node in inferred.graph.node:
        if learned(node):
            # Weight (C', C / groups, kh, kw): each output pixel costs all of it once.
            total += prod(weights[node.input[1]]) * prod(shapes[node.output[0]][2:])
    return total


def _of_one_size(model: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """The model for images of the contract's size only, with the shapes computed."""
    size = contract.input.height, contract.input.width
    config = ort.SessionOptions()
    config.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    config.log_severity_level = 3
    for name, side in zip(("height", "width"), size, strict=True):
        config.add_free_dimension_override_by_name(name, side)
    data = of_one_size(model.SerializeToString(), INPUT, size)
    with tempfile.TemporaryDirectory() as folder:
        config.optimized_model_filepath = str(Path(folder, "sized.onnx"))
        ort.InferenceSession(data, config, providers=["CPUExecutionProvider"])
        return onnx.load(config.optimized_model_filepath)


def _weight_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes of initializers, also behind the DequantizeLinear of a quantized file."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    return shapes


def show(found: dict[str, Any]) -> str:
    """The description as text."""
    contract, parity = found["contract"], found["contract"]["parity"]
    size = contract["input"]
    scales = ", ".join(f"{scale:g}" for scale in contract["scales"])
    operators = ", ".join(f"{name} {count}" for name, count in found["operators"].items())
    lost = parity["miou_change"]
    stride = contract["output_stride"]  # None: adopted
    original = "PyTorch" if stride else contract["metrics"]["adopted_from"]
    change = "" if lost is None else f", mIoU {lost:+.4f} on {parity['miou_images']} images"
    rows = {
        "file": f"{found['file']} ({found['bytes'] / 1e6:.1f} MB, opset {found['opset']})",
        "task": f"{contract['task']}, {len(contract['classes'])} classes",
        "network": contract["backbone"] + (f", output stride {stride}" if stride else ""),
        "input": f"{size['height']} x {size['width']} x {len(size['pad'])} ({size['policy']}), "
        f"padded {size['pad']}",
        "inference": f"scales {scales}{', flip' if contract['flip'] else ''}",
        "precision": contract["precision"],
        "confidence": "yes" if contract["confidence"] else "no",
        "probabilities": "yes" if contract["probability_grid"] else "no",
        "labels": "best expected IoU" if contract["best_iou"] else "most probable class",
        "parity": f"{parity['agreement']:.4%} of {parity['pixels']} labels as {original}, "
        f"largest logit error {parity['max_logit_error']:.2g}{change}",
        "mIoU": contract["metrics"].get("miou", "not measured"),
        "parameters": f"{found['parameters'] / 1e6:.3f} M",
        "multiply-adds": f"{found['multiply_adds'] / 1e9:.3f} B" if stride else "not counted",
        "operators": operators,
        "checkpoint": f"SHA-256 {contract['checkpoint_sha256']}",
    }
    return "\n".join(f"{name:14} {value}" for name, value in rows.items())


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m export.describe",
        description="Show contract, certificate, operators, multiply-adds and size of a file.",
        epilog="example: python -m export.describe service/models/efficientnet-lite0-voc.onnx",
    )
    p.add_argument("file", type=Path, help="exported .onnx file")
    p.add_argument("--json", action="store_true", help="print JSON")
    args = p.parse_args(argv)
    try:
        found = describe(args.file)
    except DescribeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2) if args.json else show(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
