"""Attack a running service while ordinary clients use it: `python -m service.bench.attack`.

It starts the service and repeats each attack from several connections for some seconds. Attackers
run in a process of their own, at the service's priority. With --low-priority they take only the
processor time that the service leaves, as if they ran on another host.
Meanwhile an ordinary client sends photos one after another, and `/livez` is requested. The table
shows for each attack its cost to the attacker, the answers, the median and the longest wait of the
ordinary client, how many times as long as without an attack the longest is, the longest wait of
`/livez`, how long the event loop was held at most (in processor time, which does not grow on a busy
machine), and the peak memory of the service with its decoders.
The exit code is 1 if an ordinary client did not get its mask, the event loop was held for more than
200 ms, the service ended or it used more than --max-memory-mib. Everything stays on this host.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import httpx

from service import launch
from service.bench import crafted, turns, vitals
from service.bench.hostile import IMAGE, Case, HostileClient, Manner
from service.bench.tables import Table
from service.settings import BUNDLED, SAMPLES

MIB = 1024 * 1024
CONNECTIONS = 8
EVERY_S = 0.1  # between two readings of memory and /livez
RECOVERY_S = 1.0  # between attacks
MOST_LOOP_MS = 200  # for which /livez may wait
JSON = {"Content-Type": "application/json"}
SOON = IMAGE | {"X-Request-Timeout-Ms": "500"}
ANY = frozenset(range(100, 600))
NONE = "none"  # the name of the attack that is none


@dataclass(frozen=True)
class Attack:
    """A hostile request, and the number of connections that send it."""

    name: str
    make: Callable[[], bytes]  # the body
    target: str = "/segment"
    headers: dict[str, str] = field(default_factory=lambda: IMAGE)
    manner: Manner = Manner.WHOLE
    connections: int = CONNECTIONS
    method: str = "POST"

    def case(self) -> Case:
        """Return the request."""
        body = self.make()
        return Case(self.name, ANY, self.target, self.headers, body, self.manner, self.method)


@dataclass
class Outcome:
    """What happened during one attack."""

    name: str
    attack_bytes: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    ordinary: Counter[str] = field(default_factory=Counter)
    waits_ms: list[float] = field(default_factory=list)  # of the ordinary client
    livez_ms: float = 0.0  # the longest
    loop_ms: float = 0.0  # upper bound of the longest turn of the event loop, processor time
    memory_mib: float = 0.0  # peak

    @property
    def longest_ms(self) -> float:
        """The longest wait of the ordinary client."""
        return max(self.waits_ms, default=0.0)

    @property
    def median_ms(self) -> float:
        """The median wait of the ordinary client."""
        return median(self.waits_ms) if self.waits_ms else 0.0


def attacks(model: str, max_body: int) -> list[Attack]:
    """Return all attacks; `model`: the name of a served model."""
    overlay, infer = "/segment?output=overlay", f"/v2/models/{model}/infer"
    png_overlay = "/segment?output=overlay&overlay_format=png"
    many = IMAGE | {f"x{number}": "" for number in range(9000)}
    accept = IMAGE | {"Accept": "image/png;q=0.1," * 1900}
    header = IMAGE | {"X-Filler": "x" * 1_000_000}
    dripping, parameters = Manner.DRIPPING, "&".join(f"k{n:x}=" for n in range(5000))
    return [
        Attack(NONE, bytes, connections=0),
        Attack("JPEG of 100 scans", partial(crafted.jpeg_of_scans, 100), overlay, SOON),
        Attack("JPEG of 4,000 scans", partial(crafted.jpeg_of_scans, 4000)),
        Attack("JPEG of 1,000,000 segments", partial(crafted.jpeg_of_segments, 10**6)),
        Attack("BMP of run lengths", partial(crafted.bmp_of_runs, 30 * 10**6)),
        Attack("PNG of 2,600,000 chunks", partial(crafted.png_of_chunks, 2_600_000)),
        Attack("EXIF of 3,500,000 rationals", partial(crafted.png_with_orientations, 3_500_000)),
        Attack("TIFF of one huge tile", partial(crafted.tiff_of_one_tile, 40_000)),
        Attack("PNG of one row", partial(crafted.png_of_one_row, 49_000_000)),
        Attack("lossless WebP", crafted.webp_lossless, png_overlay),
        Attack("64 largest photos", partial(crafted.noise, 6900), png_overlay, connections=64),
        Attack("polygons of noise", partial(crafted.noise, 3000), "/segment?output=polygons"),
        Attack("windows of noise", partial(crafted.noise, 3000), "/segment?fit=sliding"),
        Attack("largest bodies", partial(bytes, max_body), connections=60),
        Attack(
            "largest JSON tensor", partial(crafted.tensor_as_json, max_body - 1000), infer, JSON
        ),
        Attack("JSON of empty lists", partial(crafted.json_of_lists, max_body - 1000), infer, JSON),
        Attack("long Accept", partial(crafted.webp_lossless, 16), headers=accept, connections=20),
        Attack("header of 1 MB", bytes, headers=header, connections=20),
        Attack("9,000 headers", bytes, headers=many, connections=20),
        Attack("5,000 parameters", bytes, "/segment?" + parameters, connections=20),
        Attack("chunks of one byte", partial(bytes, 200_000), manner=Manner.CRUMBS),
        Attack("chunks after an error", partial(bytes, 200_000), "/none", manner=Manner.CRUMBS),
        Attack("bodies after an error", partial(bytes, max_body), "/none", connections=60),
        Attack("metrics", bytes, "/metrics", {}, method="GET"),
        Attack("unknown pages", bytes, "/unknown", {}, method="GET"),
        Attack("dripping bodies", partial(crafted.noise, 800), manner=dripping, connections=64),
        Attack("slow readers", partial(crafted.noise, 4000), png_overlay, manner=Manner.READING),
        Attack("clients that leave", partial(crafted.noise, 3000), overlay, manner=Manner.LEAVING),
    ]


@dataclass(frozen=True)
class Options:
    """What to attack and for how long."""

    models: Path = BUNDLED
    seconds: float = 5.0
    only: tuple[str, ...] = ()  # names; empty: all attacks
    flags: tuple[str, ...] = ()  # of the service
    max_memory_mib: float = 4096.0
    low_priority: bool = False  # attackers take only the processor time that is left
    connections: int = 0  # of each attack; 0: its own number


def run(options: Options) -> tuple[list[Outcome], list[str]]:
    """Return the outcomes and a description of everything that is wrong."""
    flags = ["--device", "cpu", "--log-level", "error", "--body-timeout-s", "5", *options.flags]
    with launch.service(options.models, *flags) as server:
        served = httpx.get(f"{server.url}/models", trust_env=False).json()["models"]
        chosen = [
            replace(each, connections=min(options.connections or 2**31, each.connections))
            for each in attacks(served[0]["name"], 32 * MIB)
            if not options.only or each.name in options.only
        ]
        outcomes = [_attacked(server, each, options) for each in chosen]
        ended = server.process.poll() is not None
    wrong = list(problems(outcomes, options))
    return outcomes, [*wrong, *(["the service has ended"] if ended else [])]


def problems(outcomes: Sequence[Outcome], options: Options) -> Iterator[str]:
    """Yield a description of everything that went wrong."""
    for each in outcomes:
        if each.ordinary.keys() - {"200"}:
            yield f"{each.name}: an ordinary client got {dict(each.ordinary)}"
        if not each.ordinary["200"]:
            yield f"{each.name}: an ordinary client got no mask"
        if each.loop_ms > MOST_LOOP_MS:
            yield f"{each.name}: the event loop was held for {each.loop_ms:.0f} ms of its time"
        if each.memory_mib > options.max_memory_mib:
            yield f"{each.name}: {each.memory_mib:.0f} MiB, more than {options.max_memory_mib:g}"


def _attacked(server: launch.Server, attack: Attack, options: Options) -> Outcome:
    """Attack for some seconds, and wait until the ordinary client has its last answer."""
    outcome = Outcome(attack.name)
    with _attackers(server.url, attack, low_priority=options.low_priority) as attackers:
        outcome.attack_bytes = attackers.recv()
        before = _turns(server)
        attackers.send("begin")
        asyncio.run(_observed(server, options.seconds, outcome))
        attackers.send("end")
        outcome.answers = attackers.recv()
    outcome.loop_ms = turns.longest_ms(before, _turns(server))
    time.sleep(RECOVERY_S if attack.connections else 0)
    return outcome


async def _observed(server: launch.Server, seconds: float, outcome: Outcome) -> None:
    """Record what the ordinary client and /livez see, and the memory of the service."""
    watch = asyncio.create_task(_watch(server, outcome))
    await _ordinary(server, time.monotonic() + seconds, outcome)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


@contextmanager
def _attackers(url: str, attack: Attack, *, low_priority: bool) -> Iterator[Connection]:
    """A process that sends the bytes of a request, waits, attacks, waits, and sends the answers."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_attack, args=(url, attack, theirs, low_priority), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def _attack(url: str, attack: Attack, connection: Connection, low_priority: bool) -> None:
    case = attack.case()  # takes seconds for some
    if low_priority:
        _take_lowest_priority()
    connection.send(len(case.head()) + len(case.body))
    connection.recv()
    connection.send(asyncio.run(_answers(url, case, attack.connections, connection)))


def _take_lowest_priority() -> None:
    """Leave the processors to the service, also where Linux shares them out by session."""
    os.nice(19)
    with suppress(OSError):
        os.setsid()
        Path("/proc/self/autogroup").write_text("19", encoding="utf-8")


async def _answers(url: str, case: Case, connections: int, parent: Connection) -> Counter[str]:
    """Attack until the parent says "end", and count the answers."""
    answers = Counter[str]()
    tasks = [
        asyncio.create_task(_attacker(url, case, number, answers)) for number in range(connections)
    ]
    await asyncio.to_thread(parent.recv)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return answers


def _turns(server: launch.Server) -> turns.Turns:
    return turns.read(httpx.get(f"{server.url}/metrics", trust_env=False, timeout=60).text)


def _client(url: str, number: int) -> HostileClient:
    address = urlsplit(url)
    return HostileClient(str(address.hostname), int(address.port or 80), random.Random(number))


async def _attacker(url: str, case: Case, number: int, answers: Counter[str]) -> None:
    client = _client(url, number)
    try:
        while True:
            try:
                status = await client.send(case)
                answers["left" if status is None else str(status)] += 1
            except (OSError, asyncio.LimitOverrunError):
                answers["closed"] += 1
                await asyncio.sleep(0.01)
    finally:
        client.close()


async def _ordinary(server: launch.Server, until: float, outcome: Outcome) -> None:
    """Send photos one after another until the time is over, but at least one."""
    client = _client(server.url, 0)
    photo = (SAMPLES / "astronaut.jpg").read_bytes()
    case = Case("ordinary", frozenset({200}), "/segment", IMAGE, photo)
    try:
        while not outcome.waits_ms or time.monotonic() < until:
            began = time.monotonic()
            try:
                outcome.ordinary[str(await client.send(case))] += 1
            except OSError as error:
                outcome.ordinary[f"{type(error).__name__}"] += 1
            outcome.waits_ms.append((time.monotonic() - began) * 1000)
    finally:
        client.close()


async def _watch(server: launch.Server, outcome: Outcome) -> None:
    """Record the peak memory and the slowest answer of /livez."""
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as client:
        while True:
            memory = await asyncio.to_thread(vitals.tree_mib, server.pid)
            outcome.memory_mib = max(outcome.memory_mib, memory)
            began = time.monotonic()
            with suppress(httpx.TransportError):
                await client.get("/livez")
            outcome.livez_ms = max(outcome.livez_ms, (time.monotonic() - began) * 1000)
            await asyncio.sleep(EVERY_S)


def table(outcomes: Sequence[Outcome]) -> Table:
    """Format the outcomes."""
    waits = ("median ms", "longest ms", "to none", "/livez ms", "loop ms")
    idle = next((each.longest_ms for each in outcomes if each.name == NONE), 0.0)
    header = ("attack", "KB sent", "answers", "ordinary", *waits, "MiB")
    rows = tuple(
        (
            each.name,
            f"{each.attack_bytes / 1000:.0f}",
            _counted(each.answers) or "none",
            _counted(each.ordinary),
            f"{each.median_ms:.0f}",
            f"{each.longest_ms:.0f}",
            f"{each.longest_ms / idle:.1f} x" if idle else "",
            f"{each.livez_ms:.0f}",
            f"<= {each.loop_ms:g}",
            f"{each.memory_mib:.0f}",
        )
        for each in outcomes
    )
    return Table("What attackers send, and what an ordinary client saw meanwhile", header, rows)


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{count} x {what}" for what, count in found.most_common())


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m service.bench.attack",
        description="Attack a service on this host while an ordinary client uses it.",
        epilog="example: python -m service.bench.attack --seconds 20 --json attack.json",
    )
    p.add_argument("--model-dir", type=Path, default=BUNDLED, help="folder of .onnx files")
    p.add_argument("--seconds", type=float, default=5.0, help="of each attack (%(default)g)")
    p.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="attacks to run, by their names"
    )
    p.add_argument("--decoders", metavar="N", help="of the service; 0: threads")
    p.add_argument(
        "--max-memory-mib",
        type=float,
        default=Options.max_memory_mib,
        help="most memory of the service and its decoders (%(default)g)",
    )
    p.add_argument(
        "--connections", type=int, default=0, metavar="N", help="at most, of each attack"
    )
    p.add_argument(
        "--low-priority",
        action="store_true",
        help="attackers take only the processor time that is left, as if on another host",
    )
    p.add_argument("--json", type=Path, metavar="F", help="write the figures to F")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print. Return 1 if something went wrong."""
    args = parser().parse_args(argv)
    flags = () if args.decoders is None else ("--decoders", args.decoders)
    options = Options(
        args.model_dir,
        args.seconds,
        tuple(args.only),
        flags,
        args.max_memory_mib,
        args.low_priority,
        args.connections,
    )
    outcomes, wrong = run(options)
    if args.json:
        figures = {"attacks": [vars(each) for each in outcomes], "problems": wrong}
        args.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    print(table(outcomes).text())
    print("\n".join(f"FAILED: {each}" for each in wrong) or "all checks passed")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
