"""Compare an exported file and its service with PyTorch in one run: `python -m export.bench`.

Machines differ and are noisy, so compare ratios: all contestants take turns, round after
round, and each reports its median. First the file: in our engine, in OpenVINO, and its
checkpoint in PyTorch. The share of time after the network (resizing logits, argmax, cast)
comes from ONNX Runtime's own profile. Then the running service: against its bare engine
(`service.bench`) and against a plain PyTorch handler.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from export.graph import LabelGraph
from export.tail import tail
from model import checkpoint
from service import launch
from service.bench import measure
from service.bench.rivals import environments
from service.bench.rivals.environments import LiteRt
from service.bench.tables import Table
from service.errors import StartupError
from service.inference import cpus
from service.inference.contract import INPUT, LABELS, OPTIONAL
from service.inference.engine import Device, Engine, EngineOptions
from service.settings import BUNDLED

NAME = "efficientnet-lite0-voc"
CHECKPOINT = checkpoint.BUNDLED / NAME
PLAIN = "plain PyTorch handler"

# Not part of the repository; see docs/performance.md for where it is published.
SHARED = Path(os.environ.get("DEEPLAB_SHARED", Path(__file__).parents[2] / "shared"))
PUBLISHED = SHARED / "teachers" / "deeplabv3_mnv2_pascal_quant.tflite"

REST_S = 0.05  # between runs: idle threads of the one before first spin for a while

Images = NDArray[np.uint8]
Runner = Callable[[Images], Any]


def contestants(
    file: Path, source: Path, others: list[Path], threads: int, device: Device = "cpu"
) -> dict[str, Runner]:
    """The file in our engine, its checkpoint in PyTorch, the file in OpenVINO, other files.

    Raises StartupError or CheckpointError for files that cannot be loaded.
    """
    torch.set_num_threads(threads)
    options = EngineOptions(device, threads=threads)
    engine = Engine(file, options)
    torch_device = "cuda" if device == "cuda" else "cpu"
    contract = engine.contract
    graph = LabelGraph(
        checkpoint.load(source, contract.output_stride), scales=contract.scales, flip=contract.flip
    )
    graph.to(torch_device).eval()

    def eager(images: Images) -> Any:
        with torch.inference_mode():
            return graph(torch.from_numpy(images).to(torch_device))[0].cpu()

    found: dict[str, Runner] = {"engine": engine.run, "PyTorch eager": eager}
    if device != "cuda" and find_spec("openvino") is not None:
        found["OpenVINO, its defaults"] = openvino_runner(file, threads)
        exact = EngineOptions("openvino", threads=threads, precision="fp32")
        found["OpenVINO, fp32"] = Engine(file, exact).run
    for path in others:
        found[path.name] = Engine(path, options).run
    return found


def openvino_runner(file: Path, threads: int) -> Runner:
    """Load a file in OpenVINO with the given number of threads; everything else is its default.

    It computes in bfloat16 where the CPU has it.
    """
    import openvino  # noqa: PLC0415 - optional: only this comparison needs it

    core = openvino.Core()
    whole = core.read_model(file)
    # Like our engine, compute the labels only.
    model = openvino.Model([whole.output(LABELS)], whole.get_parameters())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda images: compiled([images])[0]


@dataclass(frozen=True)
class Timing:
    """The time of one run of a candidate."""

    seconds: float  # median
    cpu_s: float  # mean processor time, of all threads


def timings(candidates: dict[str, Runner], images: Images, rounds: int) -> dict[str, Timing]:
    """The times of each candidate over rounds in which all run in turn."""
    seconds: dict[str, list[float]] = defaultdict(list)
    used: dict[str, float] = defaultdict(float)
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            time.sleep(REST_S)
            clock = run.cpu_s if isinstance(run, LiteRt) else time.process_time
            began, cpu = time.perf_counter(), clock()
            run(images)
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
                used[name] += clock() - cpu
    return {
        name: Timing(statistics.median(values), used[name] / rounds)
        for name, values in seconds.items()
    }


@contextmanager
def published(file: Path | None, images: Images, threads: int) -> Iterator[dict[str, Runner]]:
    """The published 8-bit MobileNetV2 in LiteRT as a candidate, if both are installed."""
    if file is None or not file.exists() or environments.program("litert") is None:
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.npy"
        np.save(image, images[:1])
        interpreter = LiteRt(file, image, threads)
        try:
            yield {f"{file.stem}, LiteRT": interpreter}
        finally:
            interpreter.close()


def tail_share(file: Path, images: Images, threads: int, rounds: int) -> float:
    """Share of the kernels' time that is spent after the last convolution."""
    names = {f"{name}_kernel_time" for name in tail(onnx.load(file))}
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        optional = {each.name for each in session.get_overridable_initializers()}
        refused = dict.fromkeys(optional & set(OPTIONAL.values()), np.array(False))
        for _ in range(rounds):
            session.run([LABELS], {INPUT: images, **refused})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    behind = sum(event["dur"] for event in kernels if event["name"] in names)
    return float(behind / sum(event["dur"] for event in kernels))


def compared(args: argparse.Namespace, threads: int) -> tuple[Table, dict[str, Any]]:
    """Compare the file with its rivals at one image size; returns a table and its figures.

    Raises StartupError or CheckpointError for files that cannot be loaded.
    """
    candidates = contestants(args.file, args.checkpoint, args.other, threads, args.device)
    size = Engine(args.file, EngineOptions("cpu")).contract.input
    height, width = size.height, size.width
    shape = (args.batch, height, width, size.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with published(args.tflite, images, threads) as more:
        found = timings({**candidates, **more}, images, args.rounds)
    # A GPU's kernels run on after ONNX Runtime's profile has noted their time.
    on_cpu = args.device != "cuda"
    share = tail_share(args.file, images, threads, args.rounds) if on_cpu else None
    engine = found["engine"]
    rows = tuple(
        (
            name,
            f"{1000 * each.seconds / args.batch:.1f}",
            f"{each.seconds / engine.seconds:.2f} x",
            f"{1000 * each.cpu_s / args.batch:.1f}",
            f"{each.cpu_s / engine.cpu_s:.2f} x",
        )
        for name, each in found.items()
    )
    table = Table(
        f"{args.file.name}, batch {args.batch}, "
        f"{f'{threads} threads' if on_cpu else args.device}, {args.rounds} rounds",
        ("", "ms an image", "to engine", "CPU ms", "to engine"),
        rows,
        "" if share is None else f"behind the last convolution: {share:.1%} of the time in kernels",
    )
    times = {name: asdict(each) for name, each in found.items()}
    return table, {"times": times, "tail_share": share, "batch": args.batch}


def served(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the service with its engine and the plain handler; raises like `service.bench`."""
    size = "{},{}".format(*Engine(args.file, EngineOptions("cpu")).input_size)
    options = measure.BenchOptions(
        args.file,
        tuple(args.photos),
        args.service_rounds,
        args.seconds,
        args.megapixels,
        args.device,
        args.rivals,
    )
    plain_options = ("--size", size, "--device", "cuda" if args.device == "cuda" else "cpu")
    with launch.module("export.plain_handler", str(args.checkpoint), *plain_options) as plain:
        return measure.run(options, {PLAIN: plain})


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.bench",
        description="Compare an exported file with PyTorch and OpenVINO (where installed), "
        "and the service on it with a plain PyTorch handler.",
        epilog="example: python -m export.bench --other models/light-int8.onnx --markdown",
    )
    p.add_argument(
        "file",
        type=Path,
        nargs="?",
        default=BUNDLED / f"{NAME}.onnx",
        help="exported file (default: the bundled model)",
    )
    p.add_argument(
        "--checkpoint",
        type=Path,
        default=CHECKPOINT,
        metavar="NAME",
        help="checkpoint that FILE was exported from (default: the bundled one)",
    )
    p.add_argument("--other", type=Path, action="append", default=[], help="more files to compare")
    p.add_argument(
        "--tflite",
        type=Path,
        default=PUBLISHED,
        metavar="FILE",
        help="8-bit TFLite file to run in LiteRT, where it is there (default: %(default)s)",
    )
    p.add_argument("--batch", type=int, default=1, help="images per run (default: 1)")
    p.add_argument("--rounds", type=int, default=20, help="runs of each engine (default: 20)")
    p.add_argument(
        "--service",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure the running service",
    )
    p.add_argument(
        "--service-rounds", type=int, default=5, help="rounds of each server (default: 5)"
    )
    measure.add_options(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when a file cannot be loaded or a server does not answer."""
    args = parser().parse_args(argv)
    try:
        table, result = compared(args, cpus.available())
        print(measure.shown([table], markdown=args.markdown), flush=True)
        if args.service:
            result["service"] = served(args)
            tables = measure.tables(result["service"])
            print("\n" + measure.shown(tables, markdown=args.markdown))
    except (StartupError, checkpoint.CheckpointError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        args.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
