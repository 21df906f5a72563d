"""Measure the engine alone, in a process of the serving environment.

`started` runs `python -m service.bench.bare FILE PHOTO...` on the interpreter that also runs the
service, so that both have the same build of ONNX Runtime. The process loads the file once, prints
its `EngineFacts`, and then answers each line of JSON on its stdin, `{"batch": 1, "seconds": 5,
"every_lane": false}`, with the figures of such a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service import launch
from service.bench.generator import LoadReport
from service.errors import StartupError
from service.images import imaging
from service.inference import cpus
from service.inference.engine import Device, Engine, EngineOptions
from service.inference.models import MOST_LANES
from service.settings import Settings

BATCH = 4  # also run the engine on batches of this size, which is faster on some hosts

Predict = Callable[[NDArray[np.uint8]], object]  # runs an engine on a batch


@dataclass(frozen=True)
class EngineFacts:
    """How the engine of the other process runs the file."""

    provider: str
    execution_precision: str
    threads: int
    lanes: int  # runs at a time
    batches: list[int]  # sizes to measure
    onnxruntime: str  # version


class BareEngine:
    """An engine in another process, with the photos already decoded."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.facts = EngineFacts(**self._read())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def run(self, batch: int, seconds: float, *, every_lane: bool = False) -> LoadReport:
        """Run batches one after the other, or one on each lane; raises StartupError."""
        asked = {"batch": batch, "seconds": seconds, "every_lane": every_lane}
        assert self._process.stdin is not None  # a pipe
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return LoadReport(**self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # a pipe
        line = self._process.stdout.readline()
        if not line:
            raise StartupError(f"the engine's process ended with {self._process.wait()}, see above")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise StartupError(found["error"])
        return found


@contextmanager
def started(file: Path, device: Device, photos: Sequence[Path]) -> Iterator[BareEngine]:
    """Load a file in the serving environment; raises StartupError if that fails."""
    command = [launch.python(), "-m", "service.bench.bare", str(file), *map(str, photos)]
    with subprocess.Popen(
        [*command, "--device", device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield BareEngine(process)  # the end of its stdin ends the process


def timed(
    lanes: Sequence[Predict], images: Sequence[NDArray[np.uint8]], batch: int, seconds: float
) -> LoadReport:
    """Run the engine alone on decoded images (H, W, 3): a thread per lane, `batch` per run."""
    batches = [together(images, first, batch) for first in range(len(images))]
    for run in lanes:
        run(batches[0])  # the first run allocates memory

    def work(run: Predict) -> list[float]:
        took: list[float] = []
        following = cycle(batches)
        while sum(took) < seconds:
            began = time.perf_counter()
            run(next(following))
            took.append(time.perf_counter() - began)
        return took

    with ThreadPoolExecutor(len(lanes)) as pool:
        cpu_began = time.process_time()
        took = [each for times in pool.map(work, lanes) for each in times]
        cpu_s = time.process_time() - cpu_began
    lasted = sum(took) / len(lanes)
    return LoadReport(batch * len(took), 0, lasted, 1000 * statistics.median(took), {}, 0.0, cpu_s)


def together(images: Sequence[NDArray[np.uint8]], first: int, batch: int) -> NDArray[np.uint8]:
    """Return a batch that begins with an image, of all images of its size in turn."""
    turned = (*images[first:], *images[:first])
    alike = [each for each in turned if each.shape == images[first].shape]
    return np.stack([alike[place % len(alike)] for place in range(batch)])


def decoded(engine: Engine, photos: Sequence[Path]) -> list[NDArray[np.uint8]]:
    """Decode photos as the service does."""
    limit: int = Settings.model_fields["max_pixels"].default
    fitted = []
    for path in photos:
        opened = imaging.open_checked(path.read_bytes(), limit)
        photo = imaging.decode(opened, reduce_to=max(engine.input_size))
        fitted.append(imaging.fit(photo, engine.contract.input).pixels)
    return fitted


def answered(engine: Engine, images: Sequence[NDArray[np.uint8]], line: str) -> LoadReport:
    """Do the run that a line of JSON requests."""
    asked = json.loads(line)
    lanes: Sequence[Predict] = engine.runs if asked["every_lane"] else [engine.predict_alone]
    return timed(lanes, images, asked["batch"], asked["seconds"])


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m service.bench.bare", description=__doc__)
    p.add_argument("file", type=Path, help="exported .onnx file")
    p.add_argument("photos", type=Path, nargs="+", help="photos to run on")
    p.add_argument("--device", choices=get_args(Device), default="cpu", help="as for the service")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the lines of stdin until it ends; 1 if the file cannot be loaded."""
    args = parser().parse_args(argv)
    threads = cpus.available()
    lanes = min(threads, MOST_LANES)
    try:
        engine = Engine(args.file, EngineOptions(args.device, threads=threads, lanes=lanes))
    except StartupError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    batches = [1, BATCH] if engine.on_cpu else [1, BATCH, 4 * BATCH]
    facts = EngineFacts(
        engine.provider,
        engine.execution_precision,
        threads,
        engine.lanes,
        batches,
        ort.__version__,
    )
    print(json.dumps(asdict(facts)), flush=True)
    images = decoded(engine, args.photos)
    for line in sys.stdin:
        print(json.dumps(asdict(answered(engine, images, line))), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
