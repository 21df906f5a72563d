"""Measure single photos with common client libraries: `python -m service.bench.libraries`.

The load generator speaks HTTP over plain sockets and does not show the overhead of a
library: httpx and requests with keep-alive, curl with a new connection per photo. Each
library runs in its own process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

from service.bench.generator import LoadReport, Tally, reported, used

# Sends a photo to a URL; returns the seconds taken, the status and Server-Timing.
Exchange = Callable[[str, Path], tuple[float, int, str]]
NAMES = ("httpx", "requests", "curl")


def available() -> list[str]:
    """Return those of NAMES that are installed."""
    return [name for name in NAMES if (shutil.which if name == "curl" else find_spec)(name)]


def with_httpx() -> Exchange:
    """Send with httpx, on one connection."""
    import httpx  # noqa: PLC0415 - each process loads the one library that it measures

    client = httpx.Client(timeout=120, trust_env=False)

    def exchange(url: str, photo: Path) -> tuple[float, int, str]:
        began = time.perf_counter()
        answer = client.post(url, files={"file": photo.read_bytes()})
        took = time.perf_counter() - began
        return took, answer.status_code, answer.headers.get("server-timing", "")

    return exchange


def with_requests() -> Exchange:
    """Send with requests, on one connection."""
    import requests  # noqa: PLC0415 - as above

    session = requests.Session()
    session.trust_env = False

    def exchange(url: str, photo: Path) -> tuple[float, int, str]:
        began = time.perf_counter()
        answer = session.post(url, files={"file": photo.read_bytes()}, timeout=120)
        took = time.perf_counter() - began
        return took, answer.status_code, answer.headers.get("server-timing", "")

    return exchange


def with_curl() -> Exchange:
    """Send with curl, on a new connection per photo; its start time is not counted."""
    shown = "%{time_total} %{http_code} %header{server-timing}"
    command = ["curl", "--silent", "--noproxy", "*", "--output", "/dev/null", "--write-out", shown]

    def exchange(url: str, photo: Path) -> tuple[float, int, str]:
        sent = [*command, "--form", f"file=@{photo}", url]
        took, status, timing = subprocess.check_output(sent, text=True).split(" ", 2)
        return float(took), int(status), timing

    return exchange


MAKERS: dict[str, Callable[[], Exchange]] = {
    "httpx": with_httpx,
    "requests": with_requests,
    "curl": with_curl,
}


def drive(exchange: Exchange, url: str, photos: Sequence[Path], seconds: float) -> LoadReport:
    """Send photos one after another, after a warm-up round."""
    for photo in photos:
        exchange(url, photo)
    tally = Tally(is_open=True)
    began = used(None)
    for photo in cycle(photos):
        took, status, timing = exchange(url, photo)
        tally.note(status, timing, took)
        if time.perf_counter() - began[0] >= seconds:
            break
    return reported(tally, began, used(None))


def measured(name: str, url: str, photos: Sequence[Path], seconds: float) -> LoadReport:
    """Measure a library in a separate process; raises RuntimeError if nothing is answered."""
    command = [sys.executable, "-m", "service.bench.libraries", name, url, *map(str, photos)]
    out = subprocess.check_output([*command, "--seconds", str(seconds)])
    report = LoadReport(**json.loads(out))
    if not report.answers:
        raise RuntimeError(f"{url}, from {name}: {report.failures} failures and no answer")
    return report


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m service.bench.libraries",
        description="Measure the latency of single photos with a client library; print JSON.",
        epilog="example: python -m service.bench.libraries httpx "
        "'http://127.0.0.1:8000/segment?output=mask' service/samples/*.jpg",
    )
    p.add_argument("name", choices=NAMES, help="client library")
    p.add_argument("url", help="URL including path and query")
    p.add_argument("photos", nargs="+", type=Path, help="files to send in turn")
    p.add_argument("--seconds", type=float, default=5.0, help="how long to send")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Send photos and print the report."""
    args = parser().parse_args(argv)
    report = drive(MAKERS[args.name](), args.url, args.photos, args.seconds)
    print(json.dumps(asdict(report)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
