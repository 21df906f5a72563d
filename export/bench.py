"""The exported file against PyTorch and OpenVINO, in one run: `python -m export.bench`.

Machines differ and are noisy, so what counts are ratios: all contestants run
in turn, round after round, and are compared by their medians. The share of
time spent behind the network (resizing logits, argmax, cast) is read off ONNX
Runtime's own profile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from export.graph import LabelGraph
from model import checkpoint
from service import cpus
from service.contract import INPUT, LABELS
from service.engine import Engine, EngineOptions
from service.errors import StartupError
from service.settings import BUNDLED

NAME = "efficientnet-lite0-voc"
CHECKPOINT = Path(checkpoint.__file__).parent / "bundled" / NAME

Images = NDArray[np.uint8]
Runner = Callable[[Images], Any]


def contestants(file: Path, source: Path, others: list[Path], threads: int) -> dict[str, Runner]:
    """The file in our engine, its checkpoint in PyTorch, the file in OpenVINO, other files.

    Raises StartupError or CheckpointError for files that cannot be loaded.
    """
    torch.set_num_threads(threads)
    engine = Engine(file, EngineOptions("cpu", threads=threads))
    contract = engine.contract
    graph = LabelGraph(
        checkpoint.load(source, contract.output_stride), scales=contract.scales, flip=contract.flip
    ).eval()

    def eager(images: Images) -> Any:
        with torch.inference_mode():
            return graph(torch.from_numpy(images))[0]

    found: dict[str, Runner] = {"engine": engine.run, "PyTorch eager": eager}
    if find_spec("openvino") is not None:
        found["OpenVINO"] = openvino_runner(file, threads)
    for path in others:
        found[path.name] = Engine(path, EngineOptions("cpu", threads=threads)).run
    return found


def openvino_runner(file: Path, threads: int) -> Runner:
    """The same file in OpenVINO, with the same number of threads."""
    import openvino  # noqa: PLC0415 - optional: only this comparison needs it

    # By default it computes in bfloat16 where the CPU can: another precision, other labels.
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(file, "CPU", config)
    return lambda images: compiled([images])[0]


def medians(candidates: dict[str, Runner], images: Images, rounds: int) -> dict[str, float]:
    """Median seconds of each candidate over rounds in which all run in turn."""
    seconds = defaultdict(list)
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            began = time.perf_counter()
            run(images)
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def tail(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes between the last convolution and the labels."""
    producers = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    waiting = [LABELS]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.op_type != "Conv" and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return found


def tail_share(file: Path, images: Images, threads: int, rounds: int) -> float:
    """Share of the kernels' time that is spent behind the last convolution."""
    names = {f"{name}_kernel_time" for name in tail(onnx.load(file))}
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for _ in range(rounds):
            session.run([LABELS], {INPUT: images})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    behind = sum(event["dur"] for event in kernels if event["name"] in names)
    return float(behind / sum(event["dur"] for event in kernels))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.bench",
        description="Compare an exported file with PyTorch and OpenVINO (where installed).",
        epilog="example: python -m export.bench --other models/light-int8.onnx",
    )
    p.add_argument("file", type=Path, nargs="?", default=BUNDLED / f"{NAME}.onnx")
    p.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="what FILE came from")
    p.add_argument("--other", type=Path, action="append", default=[], help="more files to compare")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--rounds", type=int, default=20)
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    threads = cpus.available()
    try:
        candidates = contestants(args.file, args.checkpoint, args.other, threads)
        height, width = Engine(args.file, EngineOptions("cpu")).input_size
    except (StartupError, checkpoint.CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shape = (args.batch, height, width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    seconds = medians(candidates, images, args.rounds)
    print(f"{args.file.name}, batch {args.batch}, {threads} threads, {args.rounds} rounds")
    for name, median in seconds.items():
        ratio = median / seconds["engine"]
        print(f"{name:28} {median / args.batch * 1000:7.1f} ms an image   {ratio:5.2f} x")
    share = tail_share(args.file, images, threads, args.rounds)
    print(f"behind the last convolution: {share:.1%} of the time in kernels")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
