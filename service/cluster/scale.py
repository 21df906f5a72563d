"""`python -m service.cluster.scale`: estimate the photos per hour of a fleet, and its bottleneck.

Each photo passes several stations: it is read from a store, decoded, run through the engine
and encoded, and its result is written to a store. The throughput is limited by the station
with the largest demand per server, or, with few photos in flight, by the time of one photo.
These are the asymptotic bounds of a closed queueing network (Denning and Buzen, "The
Operational Analysis of Queueing Network Models", 1978). A discrete-event simulation with
random service times checks the bounds. The costs per photo are measured; assumptions are
marked as such.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import math
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from postprocess.results import encoders, outputs
from postprocess.results.outputs import Wish
from postprocess.results.selection import select
from service.client.inputs import is_image
from service.images import imaging, join
from service.images.prepare import Prepared
from service.inference import cpus
from service.inference.engine import Engine, EngineOptions
from service.settings import BUNDLED, SAMPLES

BEGIN, END = "<!-- scale: begin -->", "<!-- scale: end -->"

# Assumptions, not measured.
GPU_MS = 1.5  # GPU time per photo in full batches; set yours with --gpu-ms
# Requests per second and prefix: AWS, "Best practices design patterns: optimizing Amazon S3
# performance". More prefixes allow more.
GETS_PER_S, PUTS_PER_S = 5500.0, 3500.0
LATENCY_MS = 60.0  # of one GET plus one PUT, without the transfer

ROUNDS = 5  # of the measurement
LARGE, NOISE = (4000, 3000), 4.0  # 12 megapixels with sensor noise: a few megabytes
SPREAD = 0.5  # standard deviation / mean of the simulated service times
PHOTOS = 6000  # simulated
IN_FLIGHT = "photos in flight"
AT_MODEL, AT_PIXELS = (
    "cores: model",
    "cores: decode, encode",
)  # named by the larger part of the work

Value = TypeVar("Value")


@dataclass(frozen=True)
class Costs:
    """The cost of one photo: milliseconds of one core, and bytes."""

    decode_ms: float
    engine_ms: float
    encode_ms: float
    bytes_in: float
    bytes_out: float

    @property
    def core_ms(self) -> float:
        return self.decode_ms + self.engine_ms + self.encode_ms


@dataclass(frozen=True)
class Fleet:
    """The hosts that process photos. They read and write one store."""

    name: str
    hosts: int = 1
    cores: int = 1  # per host
    gpus: int = 0  # per host
    gbit_per_s: float = 10.0  # per host and direction
    gpu_ms: float = GPU_MS
    gets_per_s: float = GETS_PER_S
    puts_per_s: float = PUTS_PER_S
    latency_ms: float = LATENCY_MS
    in_flight: int = 0  # photos per host; 0: three times what keeps the bottleneck busy


@dataclass(frozen=True)
class Station:
    """Servers with a common queue, and the time that a photo occupies one of them."""

    name: str
    servers: int
    seconds: float

    @property
    def limit(self) -> float:
        """The most photos per second."""
        return self.servers / self.seconds if self.seconds else math.inf


@dataclass(frozen=True)
class FleetEstimate:
    """The estimated performance of a fleet."""

    photos_per_s: float
    bottleneck: str
    utilization: dict[str, float]  # by station


def stations(fleet: Fleet, costs: Costs) -> list[Station]:
    """Return a photo's stations in order. On CPU hosts the engine shares the cores."""
    hosts, wire = fleet.hosts, fleet.gbit_per_s * 1e9 / 8
    by_gpu = fleet.gpus > 0
    pixels = (costs.decode_ms + costs.encode_ms) / 1000
    engine = [Station("GPU", hosts * fleet.gpus, fleet.gpu_ms / 1000)] if by_gpu else []
    model_s = 0 if by_gpu else costs.engine_ms / 1000
    cores = AT_MODEL if model_s > pixels else AT_PIXELS
    return [
        Station("storage reads", 1, 1 / fleet.gets_per_s),
        Station("network in", hosts, costs.bytes_in / wire),
        Station(cores, hosts * fleet.cores, pixels + model_s),
        *engine,
        Station("network out", hosts, costs.bytes_out / wire),
        Station("storage writes", 1, 1 / fleet.puts_per_s),
    ]


def alone_s(fleet: Fleet, costs: Costs) -> float:
    """Return the seconds from reading a photo to its stored result on an idle fleet."""
    return sum(station.seconds for station in stations(fleet, costs)) + fleet.latency_ms / 1000


def in_flight(fleet: Fleet, costs: Costs) -> int:
    """Return the number of photos in flight, over all hosts."""
    if fleet.in_flight:
        return fleet.hosts * fleet.in_flight
    limit = min(station.limit for station in stations(fleet, costs))
    return math.ceil(3 * limit * alone_s(fleet, costs))


def model(fleet: Fleet, costs: Costs) -> FleetEstimate:
    """Estimate by the asymptotic bounds: X <= min(1 / D_max, N / (D + Z))."""
    way = stations(fleet, costs)
    slowest = min(way, key=lambda station: station.limit)
    by_flight = in_flight(fleet, costs) / alone_s(fleet, costs)
    rate = min(slowest.limit, by_flight)
    name = slowest.name if slowest.limit <= by_flight else IN_FLIGHT
    return FleetEstimate(rate, name, {station.name: rate / station.limit for station in way})


def simulate(
    fleet: Fleet, costs: Costs, *, photos: int | None = None, seed: int = 0
) -> FleetEstimate:
    """Simulate each photo at the same stations, with random service times."""
    import simpy  # noqa: PLC0415 - comes with the extra `dev`; nothing else here needs it

    environment, chance = simpy.Environment(), random.Random(seed)
    way = stations(fleet, costs)
    queues = [simpy.Resource(environment, station.servers) for station in way]
    busy_s = [0.0] * len(way)
    ends: list[float] = []
    enough, over = photos or PHOTOS, environment.event()

    def one_place_in_flight() -> Generator[Any, Any, None]:
        while True:
            yield environment.timeout(random_s(chance, fleet.latency_ms / 1000))
            for number, station in enumerate(way):
                with queues[number].request() as turn:
                    yield turn
                    seconds = random_s(chance, station.seconds)
                    yield environment.timeout(seconds)
                    busy_s[number] += seconds
            ends.append(environment.now)
            if len(ends) == enough:
                over.succeed()

    for _ in range(in_flight(fleet, costs)):
        environment.process(one_place_in_flight())
    environment.run(over)
    return _outcome(way, busy_s, ends)


def random_s(chance: random.Random, mean_s: float) -> float:
    """Draw a gamma-distributed time with this mean and with SPREAD."""
    shape = 1 / SPREAD**2
    return chance.gammavariate(shape, mean_s / shape) if mean_s else 0.0


def _outcome(way: list[Station], busy_s: list[float], ends: list[float]) -> FleetEstimate:
    """Return the rate after the start-up phase, and the utilization of the stations."""
    start = len(ends) // 4
    rate = (len(ends) - start - 1) / (ends[-1] - ends[start])
    utilization = {
        station.name: seconds / (station.servers * ends[-1])
        for station, seconds in zip(way, busy_s, strict=True)
    }
    busiest = max(utilization, key=lambda name: utilization[name])
    return FleetEstimate(rate, busiest if utilization[busiest] > 0.9 else IN_FLIGHT, utilization)


# Measurement


def measure(path: Path, photos: Sequence[bytes]) -> Costs:
    """Measure on one core, mask only: each photo's median time, averaged over the photos."""
    engine = Engine(path, EngineOptions(device="cpu", threads=1))
    engine.warm_up(1)
    wish = Wish(("mask",), select(None, engine.contract))
    each = [_measured(engine, wish, photo) for photo in photos]
    return Costs(*(statistics.fmean(values) for values in zip(*each, strict=True)))


def _measured(engine: Engine, wish: Wish, data: bytes) -> tuple[float, float, float, int, int]:
    contract, reduce_to = engine.contract, max(engine.input_size)

    def decode() -> tuple[imaging.DecodedPhoto, imaging.Fitted]:
        hashlib.sha256(data).digest()  # for the manifest
        opened = imaging.open_checked(data, max_pixels=10**9)
        photo = imaging.decode(opened, reduce_to=reduce_to)
        return photo, imaging.fit(photo, contract.input)

    def encode() -> bytes:
        prepared = Prepared(photo.photo, fitted)
        return outputs.encode(join.result(prepared, [prediction], contract), wish)[0]

    decode_ms, (photo, fitted) = _median_ms(decode)
    engine_ms, (prediction,) = _median_ms(lambda: engine.predict(fitted.pixels[None]))
    encode_ms, body = _median_ms(encode)
    return decode_ms, engine_ms, encode_ms, len(data), len(body)


def _median_ms(function: Callable[[], Value]) -> tuple[float, Value]:
    """Return the median CPU time, which other load of the machine hardly affects."""
    result, times = function(), []
    for _ in range(ROUNDS):
        began = time.process_time()
        function()
        times.append((time.process_time() - began) * 1000)
    return statistics.median(times), result


def enlarged(photo: bytes) -> bytes:
    """Enlarge a photo to a JPEG of 12 megapixels with sensor noise, as from a phone."""
    with Image.open(io.BytesIO(photo)) as image:
        large = np.asarray(image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0).normal(scale=NOISE, size=large.shape)
    noisy = (large + noise).round().clip(0, 255).astype(np.uint8)
    return encoders.jpeg(Image.fromarray(noisy))


def machine() -> str:
    """Return the processor's name and the number of CPUs this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {cpus.available()} CPUs"


# Report


def fleets(gpu_ms: float) -> list[Fleet]:
    """Return fleets from one core to a cluster, with hosts that clouds offer."""
    gpu_host = Fleet("1 GPU, 4 cores", cores=4, gpus=1, gpu_ms=gpu_ms)
    large = Fleet("8 GPUs, 192 cores", cores=192, gpus=8, gpu_ms=gpu_ms, gbit_per_s=25)
    return [
        Fleet("1 core", cores=1),
        Fleet("16 cores", cores=16),
        gpu_host,
        replace(gpu_host, name="1 GPU, 48 cores", cores=48),
        large,
        replace(large, name="8 hosts of 8 GPUs, 192 cores", hosts=8),
    ]


@dataclass(frozen=True)
class FleetRow:
    """A fleet on one kind of photos."""

    photos: str
    fleet: Fleet
    model: FleetEstimate
    simulation: FleetEstimate


@dataclass(frozen=True)
class ScaleReport:
    """All results."""

    command: str
    date: str
    machine: str
    model: str
    gpu_ms: float  # assumed
    costs: dict[str, Costs]
    rows: list[FleetRow]

    def markdown(self) -> str:
        """Format the tables of docs/scale.md."""
        lines = [
            f"`{self.command}` on {self.date}, {self.machine}; {self.model}, one core.",
            "",
            *_table(
                ["photos", "decode ms", "engine ms", "encode ms", "KB in", "KB out"],
                [_costs_row(name, costs) for name, costs in self.costs.items()],
            ),
            "",
            *_table(
                [
                    "a million photos of",
                    "TB in",
                    "GB out",
                    "GETs",
                    "PUTs",
                    "core hours, engine on CPU",
                ],
                [_million_row(name, costs) for name, costs in self.costs.items()],
            ),
            "",
            f"Photos an hour. {self.gpu_ms:g} ms of GPU time a photo is assumed, not measured.",
            "",
            *_table(
                ["photos", "fleet", "model", "simulation", "the limit", "simulated use of it"],
                [_fleet_row(row) for row in self.rows],
            ),
        ]
        return "\n".join(lines)


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _costs_row(name: str, costs: Costs) -> list[str]:
    times = (costs.decode_ms, costs.engine_ms, costs.encode_ms)
    sizes = (costs.bytes_in / 1000, costs.bytes_out / 1000)
    return [name, *(f"{value:.1f}" for value in (*times, *sizes))]


def _million_row(name: str, costs: Costs) -> list[str]:
    hours = costs.core_ms * 1e6 / 1000 / 3600
    terabytes, gigabytes = costs.bytes_in * 1e6 / 1e12, costs.bytes_out * 1e6 / 1e9
    return [name, f"{terabytes:.2f}", f"{gigabytes:.1f}", "1,000,000", "1,000,000", f"{hours:.0f}"]


def _fleet_row(row: FleetRow) -> list[str]:
    rates = (row.model.photos_per_s, row.simulation.photos_per_s)
    use = row.simulation.utilization.get(row.model.bottleneck)
    return [
        row.photos,
        row.fleet.name,
        *(f"{rate * 3600:,.0f}" for rate in rates),
        row.model.bottleneck,
        "" if use is None else f"{use:.0%}",
    ]


def write(path: Path, text: str) -> None:
    """Write the tables between the markers of a page; raises ValueError without markers."""
    page = path.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{path} must contain one {BEGIN} and one {END}")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def report(path: Path, photos: dict[str, list[bytes]], gpu_ms: float, command: str) -> ScaleReport:
    """Measure, estimate and simulate."""
    costs = {name: measure(path, images) for name, images in photos.items()}
    rows = [
        FleetRow(name, fleet, model(fleet, each), simulate(fleet, each))
        for name, each in costs.items()
        for fleet in fleets(gpu_ms)
    ]
    today = datetime.now(UTC).date().isoformat()
    return ScaleReport(command, today, machine(), path.stem, gpu_ms, costs, rows)


def _photos(paths: list[Path]) -> dict[str, list[bytes]]:
    if paths:
        return {"given": [path.read_bytes() for path in paths]}
    samples = [path.read_bytes() for path in sorted(SAMPLES.iterdir()) if is_image(path.name)]
    return {"samples": samples, "12 megapixels": [enlarged(sample) for sample in samples]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m service.cluster.scale",
        description="Estimate the photos per hour of several fleets: measure, model, simulate.",
    )
    add = parser.add_argument
    bundled = next(iter(sorted(BUNDLED.glob("*.onnx"))), None)
    add(
        "photos",
        nargs="*",
        type=Path,
        help="photos to measure with (default: the samples, as they are and enlarged)",
    )
    add(
        "--model", type=Path, default=bundled, help="exported .onnx file (default: the bundled one)"
    )
    add("--gpu-ms", type=float, default=GPU_MS, help="assumed GPU time per photo (%(default)s)")
    add("--json", action="store_true", help="print the results as JSON")
    add(
        "--write",
        metavar="FILE",
        type=Path,
        help="write the tables between the markers of this page",
    )
    options = parser.parse_args(given)
    if importlib.util.find_spec("simpy") is None:
        parser.error("the simulation needs simpy: pip install simpy")
    command = shlex.join(["python", "-m", "service.cluster.scale", *given])
    result = report(options.model, _photos(options.photos), options.gpu_ms, command)
    print(json.dumps(asdict(result), indent=2) if options.json else result.markdown())
    if options.write:
        write(options.write, result.markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
