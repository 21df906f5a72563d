"""Measure what the options of results add to a request: `python -m service.bench.results`.

A plain request and the same one with options take turns, one at a time, so that both meet the same
load of the machine. The goals are at most 10 % for `min_area` with `simplify` on photos of
500 x 375, and at most 150 ms for `smooth` at 12 megapixels.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from service import launch
from service.bench import vitals
from service.bench.tables import Table
from service.settings import BUNDLED, SAMPLES

USUAL, LARGE = (500, 375), (4000, 3000)
QUALITY = 92  # of the JPEGs that are sent
MOST_SHARE, MOST_MS = 0.10, 150.0  # the goals
WARM_UP = 2  # requests of each kind that do not count


@dataclass(frozen=True)
class Pair:
    """A plain request, and options to add to it."""

    size: tuple[int, int]
    plain: str
    options: str


PAIRS = (
    Pair(USUAL, "output=mask", "min_area=0.1%25"),
    Pair(USUAL, "output=polygons", "min_area=0.1%25&simplify=2"),
    Pair(USUAL, "output=mask", "smooth=true"),
    Pair(LARGE, "output=mask", "min_area=0.1%25"),
    Pair(LARGE, "output=mask", "smooth=true"),
)


@dataclass(frozen=True)
class Spent:
    """The time of one kind of request."""

    wall_ms: float  # median
    cpu_ms: float  # mean, as its clock has steps of 10 ms; of all processes of the service


def jpeg(path: Path, size: tuple[int, int]) -> bytes:
    """Return a photo at a size (W, H), as JPEG."""
    out = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").resize(size).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def compared(server: launch.Server, photo: bytes, pair: Pair, rounds: int) -> tuple[Spent, Spent]:
    """Send both kinds of request in turn; return what each took. Raises httpx.HTTPError."""
    queries = pair.plain, f"{pair.plain}&{pair.options}"
    times: tuple[list[tuple[float, float]], ...] = ([], [])
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(WARM_UP + rounds):
            for query, found in zip(queries, times, strict=True):
                found.append(_spent(client, server.pid, query, photo))
    plain, more = (_summary(each[WARM_UP:]) for each in times)
    return plain, more


def _summary(times: Sequence[tuple[float, float]]) -> Spent:
    wall, cpu = zip(*times, strict=True)
    return Spent(1000 * statistics.median(wall), 1000 * statistics.mean(cpu))


def _spent(client: httpx.Client, pid: int, query: str, photo: bytes) -> tuple[float, float]:
    """Return the seconds of a request, and the processor seconds that the service used."""
    cpu, began = vitals.tree_cpu_s(pid), time.perf_counter()
    headers = {"Content-Type": "image/jpeg"}
    client.post(f"/segment?{query}", content=photo, headers=headers).raise_for_status()
    return time.perf_counter() - began, vitals.tree_cpu_s(pid) - cpu


def table(results: Sequence[tuple[Pair, Spent, Spent]]) -> Table:
    """Return a row for each pair."""
    return Table(
        "What options add to a request",
        ("request", "plain", "added", "share", "plain, processor", "added", "share"),
        tuple(_row(*each) for each in results),
        f"ms: medians, and means of processor time. Goals: {MOST_SHARE:.0%} for min_area with "
        f"simplify at 500 x 375, {MOST_MS:.0f} ms for smooth at 4000 x 3000",
    )


def _row(pair: Pair, plain: Spent, more: Spent) -> tuple[str, ...]:
    name = f"{pair.size[0]} x {pair.size[1]}, {pair.plain}: {pair.options}".replace("%25", "%")
    cells = [name]
    for before, after in ((plain.wall_ms, more.wall_ms), (plain.cpu_ms, more.cpu_ms)):
        share = (after - before) / before if before else 0.0
        cells += [f"{before:.1f}", f"{after - before:.1f}", f"{share:.1%}"]
    return tuple(cells)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="python -m service.bench.results",
        description="Measure what min_area, simplify and smooth add to a request.",
    )
    p.add_argument("--models", type=Path, default=BUNDLED, metavar="DIR", help="folder of models")
    photo = SAMPLES / "astronaut.jpg"
    p.add_argument("--photo", type=Path, default=photo, help="photo to resize and send")
    p.add_argument("--rounds", type=int, default=20, help="requests of each kind (default: 20)")
    p.add_argument("--device", default="cpu", help="device of the service (default: cpu)")
    p.add_argument("--markdown", action="store_true", help="print a Markdown table")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Start the service, measure and print."""
    args = parser().parse_args(argv)
    photos = {size: jpeg(args.photo, size) for size in (USUAL, LARGE)}
    with (
        Path(os.devnull).open("wb") as log,
        launch.service(args.models, "--device", args.device, log=log) as server,
    ):
        results = [
            (pair, *compared(server, photos[pair.size], pair, args.rounds)) for pair in PAIRS
        ]
    found = table(results)
    print(found.markdown() if args.markdown else found.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
