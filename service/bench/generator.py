"""A closed-loop load generator in its own process: `python -m service.bench.generator`.

N workers send photos; each sends the next one when it has its answer. After a warm-up, the
answers within a time window are counted and printed as JSON. The generator runs on the same
host as the server, so it speaks minimal HTTP/1.1 over sockets (a client library takes five
times the CPU time) and reports its own CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

from service.bench import vitals
from service.client.protocol import media_type, parse_timing

BOUNDARY = "photo-boundary"
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Load:
    """What to send, where, and for how long."""

    url: str  # including path and query
    photos: tuple[str, ...]
    concurrency: int
    seconds: float  # at least; longer until `concurrency` requests have ended
    warm_up_s: float = 1.0
    watch: int | None = None  # process id of the server


@dataclass(frozen=True)
class LoadReport:
    """The figures of the window; times in milliseconds are medians over its answers."""

    answers: int
    failures: int  # answers other than 200, and broken connections
    seconds: float
    latency_ms: float
    stages_ms: dict[str, float]  # from Server-Timing
    client_cpu_s: float
    server_cpu_s: float | None
    rest_ms: float = 0.0  # latency that Server-Timing does not explain

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


@dataclass(frozen=True)
class Answer:
    """The status and headers of an answer whose body has been read."""

    status: int
    headers: dict[str, str]  # names in lower case


@dataclass
class Tally:
    """Counts answers while the window is open."""

    is_open: bool = False
    failures: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    rests_ms: list[float] = field(default_factory=list)  # not explained by Server-Timing
    stages_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # set at each end of a request

    async def next_end(self) -> None:
        """Wait until the next request ends."""
        self.ended.clear()
        await self.ended.wait()

    @property
    def settled(self) -> int:
        """The number of requests that have ended."""
        return len(self.latencies_ms) + self.failures

    def note(self, status: int | None, server_timing: str, seconds: float) -> None:
        """Count an answer by its status; None means a broken connection."""
        self.ended.set()
        if not self.is_open:
            return
        if status != 200:
            self.failures += 1
            return
        stages = parse_timing(server_timing)
        self.latencies_ms.append(seconds * 1000)
        self.rests_ms.append(seconds * 1000 - sum(stages.values()))
        for stage, ms in stages.items():
            self.stages_ms[stage].append(ms)


def measured(load: Load) -> LoadReport:
    """Run the generator in a separate process; raises RuntimeError if nothing is answered."""
    command = [sys.executable, "-m", "service.bench.generator", load.url, *load.photos]
    command += ["--concurrency", str(load.concurrency), "--seconds", str(load.seconds)]
    command += ["--warm-up", str(load.warm_up_s)]
    command += [] if load.watch is None else ["--watch", str(load.watch)]
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    report = LoadReport(**json.loads(out))
    if not report.answers:
        raise RuntimeError(
            f"{load.url}: {report.failures} failures and no answer in {report.seconds:.1f} s"
        )
    return report


def form(url: str, photo: bytes) -> bytes:
    """Build the request that `curl -F file=@photo URL` sends."""
    start = (
        f"--{BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="file"; filename="photo"\r\n'
        f"Content-Type: {media_type(photo)}\r\n\r\n"
    )
    body = start.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    parts = urlsplit(url)
    head = (
        f"POST {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def drive(load: Load) -> LoadReport:
    """Send during warm-up and window, and wait for all requests to end.

    The window opens and closes as a request ends, so that it holds whole requests only.
    """
    tally, over = Tally(), asyncio.Event()
    requests = cycle([form(load.url, Path(photo).read_bytes()) for photo in load.photos])
    async with asyncio.TaskGroup() as workers:
        for _ in range(load.concurrency):
            workers.create_task(_work(load.url, requests, tally, over))
        await asyncio.sleep(load.warm_up_s)
        await tally.next_end()
        tally.is_open = True
        before = used(load.watch)
        await asyncio.sleep(load.seconds)
        await tally.next_end()
        while tally.settled < load.concurrency:  # a slow server: wait for enough answers
            await tally.next_end()
        tally.is_open = False
        after = used(load.watch)
        over.set()
    return reported(tally, before, after)


async def _work(url: str, requests: Iterator[bytes], tally: Tally, over: asyncio.Event) -> None:
    """Send requests, reconnecting when needed, until the load is over."""
    parts = urlsplit(url)
    while not over.is_set():
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                while not over.is_set():
                    began = time.perf_counter()
                    async with asyncio.timeout(TIMEOUT_S):
                        answer = await _exchange(reader, writer, next(requests))
                    timing = answer.headers.get("server-timing", "")
                    tally.note(answer.status, timing, time.perf_counter() - began)
                    if answer.headers.get("connection") == "close":
                        break
            finally:
                writer.close()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            tally.note(None, "", 0)
            await asyncio.sleep(0.01)  # do not spin if the server is dead


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> Answer:
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    pairs = (line.partition(": ") for line in lines if line)
    headers = {name.lower(): value for name, _, value in pairs}
    await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(first.split(" ")[1]), headers)


def used(watch: int | None) -> tuple[float, float, float | None]:
    """Read the clock, and the CPU times of this process and of the server with its workers."""
    server = None if watch is None else vitals.tree_cpu_s(watch)
    return time.perf_counter(), time.process_time(), server


def reported(
    tally: Tally,
    before: tuple[float, float, float | None],
    after: tuple[float, float, float | None],
) -> LoadReport:
    """Build the report from the readings of `used` at the start and the end of the window."""
    seconds, client = after[0] - before[0], after[1] - before[1]
    server = None if before[2] is None or after[2] is None else after[2] - before[2]
    latencies = tally.latencies_ms
    return LoadReport(
        len(latencies),
        tally.failures,
        seconds,
        statistics.median(latencies) if latencies else 0.0,
        {stage: statistics.median(values) for stage, values in tally.stages_ms.items()},
        client,
        server,
        statistics.median(tally.rests_ms) if latencies else 0.0,
    )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m service.bench.generator",
        description="Send load to a server and print its figures as JSON.",
        epilog="example: python -m service.bench.generator "
        "'http://127.0.0.1:8000/segment?output=mask' service/samples/*.jpg --concurrency 16",
    )
    p.add_argument("url", help="URL including path and query")
    p.add_argument("photos", nargs="+", help="files to send in turn")
    p.add_argument("--concurrency", type=int, default=1, help="requests at a time (default: 1)")
    p.add_argument("--seconds", type=float, default=5.0, help="length of the measured window")
    p.add_argument("--warm-up", type=float, default=1.0, help="seconds before the window")
    p.add_argument("--watch", type=int, help="process id of the server, to read its CPU time")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Send the load and print the report."""
    args = parser().parse_args(argv)
    load = Load(
        args.url, tuple(args.photos), args.concurrency, args.seconds, args.warm_up, args.watch
    )
    print(json.dumps(asdict(asyncio.run(drive(load)))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
