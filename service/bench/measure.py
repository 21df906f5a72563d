"""Compare the running service with its bare engine.

Both get the same photos on the same host and run in the serving environment. The engine
gets decoded photos, one at a time, and several at a time where the service does that. The
service gets JPEG forms over HTTP from a load generator in a separate process. Because
machines are noisy, all contestants take turns in every round, and ratios of medians are
compared.
`export.bench` adds a plain PyTorch handler as a contestant.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from service import launch
from service.bench import libraries
from service.bench.bare import BareEngine, started
from service.bench.generator import Load, LoadReport, measured
from service.bench.rivals import environments
from service.bench.tables import Table
from service.inference.engine import Device
from service.settings import SAMPLES

CONCURRENCY = (1, 4, 16)
SERVICE = "service"
# Options of the same service with the other engine, which is measured too.
SECOND: dict[Device, tuple[Device, str]] = {
    "cpu": ("openvino", "service with OpenVINO"),
    "openvino": ("cpu", "service with ONNX Runtime"),
}
LARGE_OUTPUTS = ("mask", "overlay")
MOST_UNEXPLAINED_MS = 8.0
STARTS = 3
GRAIN = 4.0  # standard deviation of sensor noise; photos without noise decode too fast
Contestant = Callable[[], LoadReport]
Figures = dict[str, Any]  # medians of one contestant


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, and for how long."""

    file: Path
    photos: tuple[Path, ...]
    rounds: int
    seconds: float  # per contestant and round
    megapixels: float = 12.0  # of the large photo, as phones take them
    device: Device = "cpu"
    rivals: bool = False  # also measure the servers in build/rivals


def run(options: BenchOptions, others: Mapping[str, launch.Server] | None = None) -> dict[str, Any]:
    """Measure everything and return figures for JSON; `others` get the same requests.

    Raises StartupError if the file cannot be loaded, RuntimeError if a server does not
    answer.
    """
    with ExitStack() as stack:
        engine = stack.enter_context(started(options.file, options.device, options.photos))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        large = large_photo(options.photos[0], Path(folder) / "large.jpg", options.megapixels)
        ours = engines(options)
        servers = {
            name: stack.enter_context(_service(options.file, device))
            for name, device in ours.items()
        }
        compared: dict[str, launch.Server] = {}
        if options.rivals:
            compared = stack.enter_context(environments.servers(options.file, engine.facts.threads))
        servers |= {**compared, **(others or {})}
        found = take_turns(_contestants(options, engine, servers, large), options.rounds)
    starts = {name: start_ms(options.file, device) for name, device in ours.items()}
    return {
        "model": options.file.name,
        "python": launch.python(),  # of the service and of the bare engine
        **asdict(engine.facts),
        "rounds": options.rounds,
        "megapixels": options.megapixels,
        "seconds": options.seconds,
        "others": sorted(others or {}),
        "rivals": sorted(compared),
        "contestants": {name: medians(reports) for name, reports in found.items()},
        "start_ms": starts,
    }


def engines(options: BenchOptions) -> dict[str, Device]:
    """Return the services to measure with their devices.

    With rivals, the service also runs on its other engine if that is installed.
    """
    found = {SERVICE: options.device}
    if options.rivals and options.device in SECOND and openvino_installed():
        device, name = SECOND[options.device]
        found[name] = device
    return found


def start_ms(file: Path, device: Device) -> list[float]:
    """Measure the milliseconds from a start to the first 200 of `/readyz`, STARTS times."""
    found = []
    for _ in range(STARTS):
        began = time.monotonic()
        with _service(file, device):
            found.append(1000 * (time.monotonic() - began))
    return found


def _service(file: Path, device: Device) -> AbstractContextManager[launch.Server]:
    flags = ("--device", device, "--default-model", file.stem, "--log-level", "warning")
    return launch.service(file.parent, *flags)


def openvino_installed() -> bool:
    """Whether the serving environment has OpenVINO."""
    command = [launch.python(), "-c", "import openvino"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _contestants(
    options: BenchOptions, engine: BareEngine, servers: Mapping[str, launch.Server], large: Path
) -> dict[str, Contestant]:
    found: dict[str, Contestant] = {
        f"engine, batch {n}": partial(engine.run, n, options.seconds) for n in engine.facts.batches
    }
    if engine.facts.lanes > 1:
        lanes = partial(engine.run, 1, options.seconds, every_lane=True)
        found[f"engine, {engine.facts.lanes} at a time"] = lanes
    for name, server in servers.items():
        for n in CONCURRENCY:
            found[f"{name} at {n}"] = loaded(server, options.photos, n, options.seconds)
    for name in libraries.available():
        url = f"{servers[SERVICE].url}/segment?output=mask"
        found[f"from {name}"] = partial(
            libraries.measured, name, url, options.photos, options.seconds
        )
    for output in LARGE_OUTPUTS:
        sent = loaded(servers[SERVICE], [large], 1, options.seconds, output)
        found[f"large, {output}"] = sent
    return found


def take_turns(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[LoadReport]]:
    """Run each contestant once per round; log to stderr how long each round took."""
    found: dict[str, list[LoadReport]] = defaultdict(list)
    for number in range(1, rounds + 1):
        began = time.monotonic()
        for name, contestant in contestants.items():
            found[name].append(contestant())
        took = time.monotonic() - began
        print(f"round {number} of {rounds} took {took:.0f} s", file=sys.stderr, flush=True)
    return dict(found)


def loaded(
    server: launch.Server, photos: Sequence[Path], n: int, seconds: float, output: str = "mask"
) -> Contestant:
    """Load a server with `n` requests in flight."""
    url = f"{server.url}/segment?output={output}"
    warm_up_s = min(2.0, seconds / 2)
    return partial(
        measured, Load(url, tuple(map(str, photos)), n, seconds, warm_up_s, watch=server.pid)
    )


def large_photo(source: Path, target: Path, megapixels: float) -> Path:
    """Enlarge a small photo to a JPEG with aspect ratio 4:3 and sensor noise."""
    unit = (megapixels * 1e6 / 12) ** 0.5
    size = round(4 * unit), round(3 * unit)
    with Image.open(source) as image:
        large = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, GRAIN, (size[1], size[0], 1))
    noisy = (np.asarray(large) + grain).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, "JPEG", quality=90)
    target.write_bytes(out.getvalue())
    return target


def medians(reports: Sequence[LoadReport]) -> Figures:
    """Return a contestant's medians over all rounds; CPU times in milliseconds per image."""

    def median(of: Callable[[LoadReport], float]) -> float:
        return statistics.median(map(of, reports))

    return {
        "rate": median(lambda report: report.rate),
        "latency_ms": median(lambda report: report.latency_ms),
        "cpu_ms": median(lambda report: 1000 * (report.server_cpu_s or 0.0) / report.answers),
        "client_cpu_ms": median(lambda report: 1000 * report.client_cpu_s / report.answers),
        "rest_ms": median(lambda report: report.rest_ms),
        "failures": sum(report.failures for report in reports),
        "stages_ms": {
            stage: statistics.median(report.stages_ms[stage] for report in reports)
            for stage in reports[0].stages_ms
        },
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """Format the figures of `run` as tables."""
    contestants: dict[str, Figures] = result["contestants"]
    found = [throughput(contestants), added_latency(contestants), from_libraries(contestants)]
    found += [large_photos(result), starting(result["start_ms"])]
    if result["rivals"]:
        found.append(against_rivals(contestants, result["rivals"]))
    return [*found, *(versus(contestants, name) for name in result["others"])]


def throughput(contestants: Mapping[str, Figures]) -> Table:
    """Compare all contestants on small photos with the fastest way to run the bare engine."""
    engine = max(it["rate"] for name, it in contestants.items() if name.startswith("engine"))
    rows = tuple(
        (
            name,
            f"{figures['rate']:.2f}",
            f"{figures['rate'] / engine:.3f}",
            f"{figures['latency_ms']:.1f}",
            f"{figures['cpu_ms']:.1f}",
            f"{figures['client_cpu_ms']:.1f}",
            f"{figures['failures']}",
        )
        for name, figures in contestants.items()
        if not name.startswith(("large", "from"))
    )
    header = ("", "photos/s", "to engine", "latency ms", "CPU ms", "client CPU ms", "failures")
    goal = (
        f"goal: the service at {CONCURRENCY[-1]} reaches at least 0.95 of the fastest bare engine"
    )
    return Table("Throughput; CPU times are per photo", header, rows, goal)


def added_latency(contestants: Mapping[str, Figures]) -> Table:
    """Show the latency that the service adds to a single request, by stage."""
    bare_ms, service = contestants["engine, batch 1"]["latency_ms"], contestants["service at 1"]
    stages: dict[str, float] = service["stages_ms"]
    added = {stage: ms - (bare_ms if stage == "infer" else 0.0) for stage, ms in stages.items()}
    rest = {"HTTP, event loop, client": service["latency_ms"] - sum(stages.values())}
    total = {"total": service["latency_ms"] - bare_ms}
    rows = tuple((name, f"{ms:.2f}") for name, ms in (added | rest | total).items())
    note = f"infer: time beyond the bare engine's {bare_ms:.1f} ms"
    return Table("Added latency at concurrency 1", ("", "ms"), rows, note)


def from_libraries(contestants: Mapping[str, Figures]) -> Table:
    """Show the latency of a single photo with several client libraries."""
    rows = tuple(
        (
            name,
            f"{figures['latency_ms']:.1f}",
            f"{figures['latency_ms'] - figures['rest_ms']:.1f}",
            f"{figures['rest_ms']:.1f}",
        )
        for name, figures in contestants.items()
        if name.startswith("from ") or name == "service at 1"
    )
    header = ("", "latency ms", "Server-Timing", "unexplained")
    note = f"goal: at most {MOST_UNEXPLAINED_MS:g} ms unexplained"
    return Table("One photo at a time, by client", header, rows, note)


def large_photos(result: dict[str, Any]) -> Table:
    """Show how the time of a request with a large photo is spent."""
    rows = []
    mask_ms: float = result["contestants"]["large, mask"]["latency_ms"]
    for output in LARGE_OUTPUTS:
        figures: Figures = result["contestants"][f"large, {output}"]
        stages, latency = figures["stages_ms"], figures["latency_ms"]
        times = (latency, *(stages[name] for name in ("decode", "infer", "encode")))
        share = 1 - stages["infer"] / latency
        shown = (f"{ms:.1f}" for ms in times)
        rows.append((output, *shown, f"{share:.1%}", f"{latency / mask_ms:.2f} x"))
    header = ("output", "latency ms", "decode", "infer", "encode", "not the model", "to the mask")
    title = f"JPEG of {result['megapixels']:g} megapixels, one at a time"
    goal = "goals at 12 megapixels: not the model <= 25 % for the mask; overlay <= 1.6 x the mask"
    return Table(title, header, tuple(rows), goal)


def starting(start_ms: Mapping[str, Sequence[float]]) -> Table:
    """Show how long the service takes from its start until it is ready."""
    rows = tuple(
        (name, f"{statistics.median(times) / 1000:.2f}", f"{max(times) / 1000:.2f}")
        for name, times in start_ms.items()
    )
    note = f"median and slowest of {STARTS} starts; goal: at most 2.5 s"
    return Table("From start to ready", ("", "s", "slowest"), rows, note)


def versus(contestants: Mapping[str, Figures], other: str) -> Table:
    """Compare the service with another server on the same requests."""
    rows = []
    for n in CONCURRENCY:
        ours, theirs = (
            contestants[f"service at {n}"]["rate"],
            contestants[f"{other} at {n}"]["rate"],
        )
        rows.append((str(n), f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f} x"))
    header = ("requests in flight", "service, photos/s", f"{other}, photos/s", "ratio")
    return Table(f"Against a {other}", header, tuple(rows), "goal: 2 x")


def against_rivals(contestants: Mapping[str, Figures], names: Sequence[str]) -> Table:
    """Compare each engine of the service with its rivals; the last column names the faster one."""
    candidates = [SERVICE, *(name for _, name in SECOND.values())]
    ours = [name for name in candidates if f"{name} at 1" in contestants]
    rows = []
    for n in CONCURRENCY:
        best = max(names, key=lambda name: contestants[f"{name} at {n}"]["rate"])
        rate = contestants[f"{best} at {n}"]["rate"]
        ratios = [contestants[f"{name} at {n}"]["rate"] / rate for name in ours]
        ahead = max(zip(ratios, ours, strict=True), default=(0.0, ""))
        winner = ahead[1] if ahead[0] >= 1 else f"**{best}**"
        shown = (f"{ratio:.2f} x" for ratio in ratios)
        rows.append((str(n), best, f"{rate:.2f}", *shown, winner))
    header = ("requests in flight", "best rival", "photos/s", *ours, "fastest")
    goal = "goals at 16 and at 1: ONNX Runtime 1.15 x and 1.05 x, OpenVINO in bf16 1.8 x and 1.2 x"
    return Table("Against the best rival on the same file", header, tuple(rows), goal)


def add_options(p: argparse.ArgumentParser) -> None:
    """Add the options that `export.bench` shares."""
    p.add_argument(
        "--device", choices=("cpu", "openvino", "cuda"), default="cpu", help="default: cpu"
    )
    p.add_argument(
        "--photos", type=Path, nargs="+", default=sorted(SAMPLES.glob("*.jpg")), help="JPEG files"
    )
    p.add_argument("--seconds", type=float, default=5.0, help="seconds per contestant and round")
    p.add_argument("--megapixels", type=float, default=12.0, help="size of the large photo")
    p.add_argument(
        "--rivals",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure LitServe and a FastAPI handler, where `make bench` has installed them",
    )
    p.add_argument("--json", type=Path, metavar="F", help="write all figures to F")
    p.add_argument("--markdown", action="store_true", help="print tables as in docs/performance.md")


def shown(found: Sequence[Table], *, markdown: bool) -> str:
    """Format tables as text or Markdown."""
    return "\n\n".join(table.markdown() if markdown else table.text() for table in found)


def output(result: dict[str, Any], found: Sequence[Table], args: argparse.Namespace) -> None:
    """Write the figures to the --json file and print them as tables."""
    if args.json:
        args.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    print(shown(found, markdown=args.markdown))
