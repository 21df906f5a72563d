"""Benchmark the batch client: `python -m service.bench.client`.

It measures two things. Does the client keep the service busy? The load generator, which
sends photos from memory and discards the masks, measures the service's own rate; the client
command, from photos on disk to masks on disk, takes turns with it. Does the client's memory
stay flat? A stub that answers at once gets more and more photos, and the client's peak
memory is read each time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import launch
from service.bench import vitals
from service.bench.generator import Load, measured
from service.bench.measure import output
from service.bench.tables import Table
from service.settings import BUNDLED, SAMPLES

IN_FLIGHT = 16  # of the generator; more does not help with one engine
FOLDER = 1000  # photos per folder of the tree
LOOK_S = 0.1  # interval of reading the client's memory
OUTPUT = "mask"


@dataclass(frozen=True)
class ClientBenchOptions:
    """What to measure, and for how long."""

    models: Path
    photos: tuple[Path, ...]
    rounds: int
    seconds: float  # for the generator and for the client, per round
    inputs: tuple[int, ...]  # numbers of photos for the memory measurement


@dataclass(frozen=True)
class Ran:
    """A run of the client command."""

    photos: int
    seconds: float  # from listing the inputs to the last answer
    cpu_s: float
    peak_rss_mib: float

    @property
    def rate(self) -> float:
        """Photos per second."""
        return self.photos / self.seconds


def plant(folder: Path, photos: Sequence[Path], count: int) -> Path:
    """Create a tree of `count` photos; within a folder they are hard links to a few files."""
    for start in range(0, count, FOLDER):
        inside = folder / f"{start // FOLDER:04}"
        inside.mkdir(parents=True)
        for number in range(min(FOLDER, count - start)):
            source = photos[number % len(photos)]
            path = inside / f"{number:04}{source.suffix}"
            if number < len(photos):
                path.write_bytes(source.read_bytes())
            else:
                first = f"{number % len(photos):04}{source.suffix}"
                path.hardlink_to(inside / first)
    return folder


def client(url: str, inputs: Path, out: Path) -> Ran:
    """Run `python -m service.client` on a folder; raises RuntimeError if a photo gets no mask."""
    command = [sys.executable, "-m", "service.client", url, str(inputs), "-o", str(out)]
    command += ["--output", OUTPUT, "--json"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL)
        peak = _peak_rss_mib(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        summary = json.loads(said.read() or b"{}")
    if process.returncode:
        raise RuntimeError(f"the client ended with {process.returncode}: {summary}")
    return Ran(summary["sent"], summary["seconds"], usage.ru_utime + usage.ru_stime, peak)


def _peak_rss_mib(pid: int) -> float:
    """Return the peak memory of a running process; rusage would include the forking process."""
    peak = 0.0
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        try:
            peak = vitals.read(pid).peak_rss_mib
        except (OSError, KeyError):  # the process is ending: its memory is already freed
            break
        time.sleep(LOOK_S)
    return peak


def busy(options: ClientBenchOptions, folder: Path) -> dict[str, Any]:
    """Compare the client's rate with the service's own, as medians of rounds."""
    can, does = [], []
    with launch.service(options.models, "--device", "cpu", "--log-level", "warning") as server:
        url = f"{server.url}/segment?output={OUTPUT}"
        photos = tuple(map(str, options.photos))
        load = Load(url, photos, IN_FLIGHT, options.seconds, watch=server.pid)
        for number in range(options.rounds):
            can.append(measured(load))
            count = max(len(photos), round(can[-1].rate * options.seconds))
            inputs = plant(folder / f"in{number}", options.photos, count)
            does.append(client(server.url, inputs, folder / f"out{number}"))
    shares = [ran.rate / report.rate for ran, report in zip(does, can, strict=True)]
    return {
        "rounds": options.rounds,
        "service": statistics.median(report.rate for report in can),
        "client": statistics.median(ran.rate for ran in does),
        "share": statistics.median(shares),
        "shares": shares,
        "client_cpu_ms": statistics.median(1000 * ran.cpu_s / ran.photos for ran in does),
    }


def memory(options: ClientBenchOptions, folder: Path) -> list[dict[str, float]]:
    """Measure the client's peak memory by number of inputs, with a stub as the service."""
    found = []
    for count in options.inputs:
        with (
            tempfile.TemporaryDirectory(dir=folder) as inside,
            launch.module("service.bench.stub") as server,
        ):
            inputs = plant(Path(inside) / "in", options.photos, count)
            ran = client(server.url, inputs, Path(inside) / "out")
        found.append(
            {
                "inputs": count,
                "peak_rss_mib": ran.peak_rss_mib,
                "rate": ran.rate,
                "cpu_ms": 1000 * ran.cpu_s / ran.photos,
            }
        )
    return found


def run(options: ClientBenchOptions) -> dict[str, Any]:
    """Measure everything, for JSON; raises RuntimeError if a photo gets no mask."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {}
        if options.rounds:
            found["busy"] = busy(options, folder)
        if options.inputs:
            found["memory"] = memory(options, folder)
    return found


def tables(result: dict[str, Any]) -> list[Table]:
    """Format the figures of `run` as tables."""
    found = []
    if "busy" in result:
        figures = result["busy"]
        rows = (
            ("service, from the load generator", f"{figures['service']:.2f}", ""),
            ("service, from the client", f"{figures['client']:.2f}", f"{figures['share']:.1%}"),
        )
        note = (
            f"goal: 95 %; the client takes {figures['client_cpu_ms']:.1f} ms of CPU per photo, "
            f"including its start; medians of {figures['rounds']} rounds"
        )
        found.append(
            Table("How busy the client keeps the service", ("", "photos/s", "share"), rows, note)
        )
    if "memory" in result:
        lines = tuple(
            (
                f"{each['inputs']:,}",
                f"{each['peak_rss_mib']:.1f}",
                f"{each['rate']:.0f}",
                f"{each['cpu_ms']:.2f}",
            )
            for each in result["memory"]
        )
        header = ("inputs", "peak RSS MiB", "photos/s", "CPU ms")
        note = "against a stub that answers at once; goal: flat memory"
        found.append(Table("The client alone", header, lines, note))
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m service.bench.client",
        description="Compare the batch client's rate with the service's, and measure its memory.",
        epilog="example: python -m service.bench.client --rounds 3 --inputs 1000,10000",
    )
    p.add_argument("--model-dir", type=Path, default=BUNDLED, help="folder of .onnx files")
    p.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        default=sorted(SAMPLES.glob("*.jpg")),
        help="photos to repeat",
    )
    p.add_argument("--rounds", type=int, default=3, help="rounds against the service; 0: none")
    p.add_argument("--seconds", type=float, default=20.0, help="seconds per side and round")
    p.add_argument(
        "--inputs",
        type=_numbers,
        default=(1_000, 10_000, 100_000),
        help="comma-separated numbers of photos for the memory measurement; empty: none",
    )
    p.add_argument("--json", type=Path, metavar="F", help="write all figures to F")
    p.add_argument("--markdown", action="store_true", help="print tables as in docs/performance.md")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Return 1 if a server does not answer or a photo gets no mask."""
    args = parser().parse_args(argv)
    options = ClientBenchOptions(
        args.model_dir, tuple(args.photos), args.rounds, args.seconds, args.inputs
    )
    try:
        result = run(options)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    output(result, tables(result), args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
