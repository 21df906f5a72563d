"""Soak test with thousands of requests, some of them hostile: `python -m service.bench.soak`.

It starts the service and sends photos from many clients. One request in twenty is broken,
huge, slow or wrong, and one client in fifty disconnects early. Afterwards it checks that

- every answer has an expected status, or 503 or 504;
- every client that stayed got an answer;
- memory is flat: the median of the last quarter of the run is at most --max-growth-mib
  above that of the second quarter;
- threads and open files are as many as before;
- the metrics agree with what the clients saw;
- the log has no error, and SIGTERM ends the service with exit code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service import launch
from service.bench import vitals
from service.bench.hostile import BUSY, Case, HostileClient, good, hostile, leaving, small_photos
from service.errors import CLIENT_GONE
from service.settings import BUNDLED, SAMPLES

HOSTILE = 0.05  # share of requests
LEAVING = 0.02
OUTPUTS = (
    *("mask", "color", "overlay", "json", "rle", "polygons", "npz", "cutout", "blur"),
    "mask,json",
)
MAX_BODY_BYTES = 1024 * 1024
SAMPLE_S = 0.5
SETTLE_S = 15.0  # time for threads and sockets to close
STEADY = 4  # equal samples: decoder processes start one after another, each with a socket
WARM_UP = 4  # requests per client before the measurement


@dataclass(frozen=True)
class SoakOptions:
    """How much to send, and how much the memory may grow."""

    models: Path
    requests: int | None = 10_000  # None: as many as fit in `minutes`
    minutes: float | None = None
    clients: int = 16
    body_timeout_s: float = 2.0
    max_growth_mib: float = 16.0  # detects a leak of 3 kB per request in 10,000
    seed: int = 0


@dataclass
class Seen:
    """The answers that the clients got."""

    sent: int = 0
    left: int = 0  # clients that disconnected early
    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)

    def note(self, case: Case, status: int | None) -> None:
        """Count an answer, or a client that disconnected."""
        if status is None:
            self.left += 1
            return
        self.statuses[status] += 1
        if status not in case.right | BUSY:
            self.wrong[f"{case.name}: {status}, not {min(case.right)}"] += 1


@dataclass(frozen=True)
class Sample:
    """The memory of the service at one moment."""

    sent: int
    rss_mib: float


@dataclass
class SoakResult:
    """The result of a run; `problems` is empty if all checks passed."""

    seconds: float
    seen: Seen
    samples: list[Sample]
    before: vitals.Vitals
    after: vitals.Vitals
    metrics: dict[str, float]
    log: str
    exit_code: int | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def growth_mib(self) -> float:
        """The growth of memory from the second to the last quarter, as medians."""
        return growth([sample.rss_mib for sample in self.samples])

    def json(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "seconds": round(self.seconds, 1),
            "requests": self.seen.sent,
            "clients_that_left": self.seen.left,
            "statuses": {str(status): n for status, n in sorted(self.seen.statuses.items())},
            "kinds": dict(self.seen.kinds.most_common()),
            "rss_mib": {
                "before": round(self.before.rss_mib, 1),
                "after": round(self.after.rss_mib, 1),
                "growth": round(self.growth_mib, 1),
            },
            "threads": [self.before.threads, self.after.threads],
            "open_files": [self.before.open_files, self.after.open_files],
            "problems": self.problems,
        }


def growth(rss_mib: Sequence[float]) -> float:
    """Return the median of the last quarter minus that of the second; 0 for a short run."""
    quarter = len(rss_mib) // 4
    if not quarter:
        return 0.0
    second, last = rss_mib[quarter : 2 * quarter], rss_mib[-quarter:]
    return statistics.median(last) - statistics.median(second)


def run(options: SoakOptions) -> SoakResult:
    """Start the service, send everything, stop it and check; SystemExit if it does not start."""
    flags = ["--device", "cpu", "--log-level", "warning", "--log-format", "json"]
    flags += ["--max-body-bytes", str(MAX_BODY_BYTES)]
    flags += ["--body-timeout-s", str(options.body_timeout_s)]
    with tempfile.TemporaryFile() as log:
        with launch.service(options.models, *flags, log=log) as server:
            result = asyncio.run(_soak(server, options))
        result.exit_code = server.process.returncode
        log.seek(0)
        result.log = log.read().decode("utf-8", "replace")
    result.problems = list(problems(result, options))
    return result


async def _soak(server: launch.Server, options: SoakOptions) -> SoakResult:
    seen, samples = Seen(), list[Sample]()
    sources = [path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))]
    photos = small_photos(sources)
    chance = random.Random(options.seed)
    outputs = await asyncio.to_thread(_outputs, server.url)
    warm = iter(good(photos, outputs)[: WARM_UP * options.clients])
    await _clients(server, options.clients, warm, seen)
    before = await _settled(server, None)
    began = time.monotonic()
    watcher = asyncio.create_task(_watch(server, seen, samples))
    cases = _cases(options, photos, outputs, chance)
    await _clients(server, options.clients, cases, seen)
    watcher.cancel()
    seconds = time.monotonic() - began
    after = await _settled(server, before)
    metrics = await asyncio.to_thread(_metrics, server.url)
    return SoakResult(seconds, seen, samples, before, after, metrics, log="")


def _outputs(url: str) -> tuple[str, ...]:
    """Return the outputs that the default model has."""
    models = httpx.get(f"{url}/models", trust_env=False).json()["models"]
    (model,) = (each for each in models if each["default"])
    return (*OUTPUTS, *(["confidence", "mask,confidence"] if model["confidence"] else []))


def _cases(
    options: SoakOptions, photos: Sequence[bytes], outputs: Sequence[str], chance: random.Random
) -> Iterator[Case]:
    """Yield valid and hostile requests until there are enough."""
    valid_cases = good(photos, outputs)
    hostile_cases = hostile(photos[0], MAX_BODY_BYTES)
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    sent = 0
    while until is None or time.monotonic() < until:
        if until is None and sent >= (options.requests or 0):
            return
        sent += 1
        drawn = chance.random()
        if drawn < HOSTILE:
            yield chance.choice(hostile_cases)
        elif drawn < HOSTILE + LEAVING:
            yield leaving(chance.choice(photos))
        else:
            yield chance.choice(valid_cases)


async def _clients(server: launch.Server, n: int, cases: Iterator[Case], seen: Seen) -> None:
    """Send the cases from `n` concurrent clients."""
    address = urlsplit(server.url)
    host, port = str(address.hostname), int(address.port or 80)

    async def client(number: int) -> None:
        sender = HostileClient(host, port, random.Random(number))
        for case in cases:
            seen.sent += 1
            seen.kinds[case.name] += 1
            try:
                seen.note(case, await sender.send(case))
            except OSError as error:
                seen.unanswered[f"{case.name}: {error or type(error).__name__}"] += 1
        sender.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(n):
            tasks.create_task(client(number))


async def _watch(server: launch.Server, seen: Seen, samples: list[Sample]) -> None:
    while True:
        samples.append(Sample(seen.sent, vitals.read(server.pid).rss_mib))
        await asyncio.sleep(SAMPLE_S)


async def _settled(server: launch.Server, before: vitals.Vitals | None) -> vitals.Vitals:
    """Read the service's usage when it has started all it needs, or is down to `before` again."""
    until = time.monotonic() + SETTLE_S
    last, equal = vitals.read(server.pid), 0
    while time.monotonic() < until:
        await asyncio.sleep(SAMPLE_S)
        now = vitals.read(server.pid)
        same = (now.open_files, now.threads) == (last.open_files, last.threads)
        last, equal = now, equal + 1 if same else 0
        if equal == STEADY if before is None else not _leaked(before, now):
            break
    return last


def _leaked(before: vitals.Vitals, after: vitals.Vitals) -> list[str]:
    found = []
    if after.threads > before.threads:
        found.append(f"{before.threads} threads before, {after.threads} after")
    if after.open_files > before.open_files:
        found.append(f"{before.open_files} open files before, {after.open_files} after")
    return found


def _metrics(url: str) -> dict[str, float]:
    """Read POST answers by status, problems and requests in progress from /metrics."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", trust_env=False).text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "deeplab_requests_total" and labels["method"] == "POST":
                found[f"status {labels['status']}"] += int(sample.value)
            elif sample.name == "deeplab_rejected_total":
                found["problems"] += int(sample.value)
            elif sample.name in {
                "deeplab_requests_in_flight",
                "deeplab_queue_depth",
                "deeplab_ready",
            }:
                found[sample.name] += int(sample.value)
    return dict(found)


def problems(result: SoakResult, options: SoakOptions) -> Iterator[str]:
    """Yield a description of every failed check."""
    seen = result.seen
    yield from (f"wrong answer, {n} times: {what}" for what, n in seen.wrong.most_common())
    yield from (f"no answer, {n} times: {what}" for what, n in seen.unanswered.most_common())
    if seen.statuses[200] == 0:
        yield "no request succeeded"
    if result.growth_mib > options.max_growth_mib:
        yield (
            f"memory grew by {result.growth_mib:.1f} MiB from the second quarter to the last, "
            f"more than {options.max_growth_mib:g}"
        )
    yield from _leaked(result.before, result.after)
    yield from miscounted(seen, result.metrics)
    if '"level": "error"' in result.log or "Traceback" in result.log:
        yield f"the log has errors: {result.log[:2000]}"
    if result.exit_code != 0:
        yield f"SIGTERM ended the service with exit code {result.exit_code}"


def miscounted(seen: Seen, metrics: dict[str, float]) -> Iterator[str]:
    """Yield the differences between the metrics and the clients' counts.

    A request whose client disconnected may count as anything, or not at all if it did not
    arrive completely.
    """
    counted = {
        int(name.removeprefix("status ")): int(n)
        for name, n in metrics.items()
        if name.startswith("status ")
    }
    for status in sorted({*counted, *seen.statuses} - {CLIENT_GONE}):
        saw, has = seen.statuses[status], counted.get(status, 0)
        if not saw <= has <= saw + seen.left:
            yield f"clients saw {saw} answers with status {status}, the metrics have {has}"
    answered, total = sum(seen.statuses.values()), sum(counted.values())
    if not answered <= total <= answered + seen.left:
        yield f"{answered} answers and {seen.left} disconnects, the metrics have {total}"
    refused = sum(n for status, n in counted.items() if status >= 400 and status != CLIENT_GONE)
    if metrics.get("problems", 0) != refused:
        yield f"{refused} answers of 400 and above, but {metrics.get('problems', 0):g} problems"
    expected = {"deeplab_requests_in_flight": 0, "deeplab_queue_depth": 0, "deeplab_ready": 1}
    for name, value in expected.items():
        if metrics.get(name) != value:
            yield f"{name} is {metrics.get(name)} after the run, not {value}"


def text(result: SoakResult) -> str:
    """Format the result as text."""
    seen, figures = result.seen, result.json()
    statuses = ", ".join(f"{n} x {status}" for status, n in figures["statuses"].items())
    lines = [
        f"{seen.sent} requests in {result.seconds:.0f} s, {seen.sent / result.seconds:.1f}/s",
        f"answers: {statuses}; {seen.left} clients disconnected",
        "memory: {before} MiB before, {after} after, growth {growth}".format(**figures["rss_mib"]),
        "threads: {} before, {} after".format(*figures["threads"]),
        "open files: {} before, {} after".format(*figures["open_files"]),
    ]
    verdict = [f"FAILED: {problem}" for problem in result.problems] or ["all checks passed"]
    return "\n".join([*lines, *verdict])


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m service.bench.soak",
        description="Load the service with valid and hostile requests and with clients that "
        "disconnect; exit with 1 and the reasons if anything is lost, leaked or miscounted.",
        epilog="example: python -m service.bench.soak --minutes 10 --json soak.json",
    )
    p.add_argument("--model-dir", type=Path, default=BUNDLED, help="folder of .onnx files")
    p.add_argument(
        "--requests", type=int, default=10_000, help="number of requests (default: %(default)s)"
    )
    p.add_argument("--minutes", type=float, help="duration, instead of --requests")
    p.add_argument(
        "--clients", type=int, default=16, help="concurrent clients (default: %(default)s)"
    )
    p.add_argument(
        "--max-growth-mib",
        type=float,
        default=SoakOptions.max_growth_mib,
        help="allowed growth of memory from the second to the last quarter (default: %(default)g)",
    )
    p.add_argument(
        "--seed", type=int, default=0, help="seed of the requests (default: %(default)s)"
    )
    p.add_argument("--json", type=Path, metavar="F", help="write the figures to F")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print. Return 1 if a check fails."""
    args = parser().parse_args(argv)
    options = SoakOptions(
        args.model_dir,
        requests=args.requests,
        minutes=args.minutes,
        clients=args.clients,
        max_growth_mib=args.max_growth_mib,
        seed=args.seed,
    )
    result = run(options)
    if args.json:
        args.json.write_text(json.dumps(result.json(), indent=2), encoding="utf-8")
    print(text(result))
    return int(bool(result.problems))


if __name__ == "__main__":
    raise SystemExit(main())
