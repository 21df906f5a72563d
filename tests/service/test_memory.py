"""4 GiB are enough: 64 requests of the kinds that take most memory, under a limit of the kernel."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service import launch
from service.bench import crafted
from service.bench.hostile import FORM, IMAGE, Case, HostileClient
from service.settings import BUNDLED, SAMPLES
from tests.service.memory import Limit, limited

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

LIMIT_MIB = 4096  # of the manifests and of docs/deploy.md
CONNECTIONS = 64  # as many as --max-requests
SECONDS = 20.0
JSON = {"Content-Type": "application/json"}
LOSSLESS = "overlay_format=png"
EXPECTED = {"200", "400", "413", "503", "504"}


def worst(model: str) -> list[Case]:
    """Requests at the limits of pixels and bytes, with the outputs that take most memory."""
    largest, twelve = crafted.noise(7000), crafted.noise(3464)
    every = f"/segment?output=overlay,cutout,blur,side-by-side,json&{LOSSLESS}"
    infer = f"/v2/models/{model}/infer"

    def case(target: str, headers: dict[str, str], body: bytes) -> Case:
        return Case(target, frozenset(range(600)), target, headers, body)

    return [
        case(f"/segment?output=overlay&{LOSSLESS}", IMAGE, largest),
        case(f"/segment?output=overlay&{LOSSLESS}", IMAGE, crafted.cmyk(7000)),
        case(f"/segment?output=overlay&{LOSSLESS}", IMAGE, crafted.webp_lossless()),
        case(f"{every}&include=overlay,color", IMAGE, twelve),
        case(f"{every}&smooth=true", IMAGE, twelve),
        case(f"/segment?output=overlay,cutout&{LOSSLESS}", FORM, crafted.form(twelve, 12)),
        case(f"/segment?fit=sliding&overlap=0.1&{LOSSLESS}", IMAGE, crafted.noise(2900)),
        case(f"{every}&fit=sliding&overlap=0&smooth=true", IMAGE, crafted.noise(2900)),
        case(infer, JSON, crafted.json_of_lists(32 * 2**20 - 1000)),
        case(infer, JSON, crafted.tensor_as_json(32 * 2**20 - 1000)),
    ]


@contextmanager
def serving(limit: Limit, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve the bundled models within the limit."""
    port = launch.free_port()
    flags = ("--device", "cpu", "--port", str(port), "--models", str(BUNDLED))
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*limit.prefix, launch.python(), "-m", "service", *flags], stderr=errors
        )
    try:
        url = f"http://127.0.0.1:{port}"
        launch.wait_until_ready(url, process)
        yield url, process
    finally:
        process.kill()
        process.wait()


async def _attack(url: str, cases: list[Case]) -> Counter[str]:
    """Send cases from all connections, and count the answers."""
    address, seen, until = urlsplit(url), Counter[str](), time.monotonic() + SECONDS

    async def send(number: int) -> None:
        chance = random.Random(number)
        client = HostileClient(str(address.hostname), int(address.port or 0), chance)
        while time.monotonic() < until:
            try:
                seen[str(await client.send(chance.choice(cases)))] += 1
            except OSError:  # refused before the end of the body
                seen["closed"] += 1
            await asyncio.sleep(0.05)
        client.close()

    await asyncio.gather(*map(send, range(CONNECTIONS)))
    return seen


def test_4_gib_are_enough_for_the_worst_mix_of_requests(tmp_path: Path) -> None:
    """The kernel kills nothing, no decoder ends by a signal, and the service still answers."""
    log = tmp_path / "service.log"
    with limited(LIMIT_MIB) as limit, serving(limit, log) as (url, process):
        (model, *_) = (each["name"] for each in httpx.get(f"{url}/models").json()["models"])
        with limit.watching(process.pid):
            seen = asyncio.run(_attack(url, worst(model)))
        assert process.poll() is None, log.read_text()[-2000:]
        assert limit.kills() == 0
        assert limit.most_mib < LIMIT_MIB
        metrics = httpx.get(f"{url}/metrics", timeout=30).text
        assert 'deeplab_decoders_ended_total{reason="SIGKILL"}' not in metrics
        assert seen.keys() <= EXPECTED | {"closed"}
        assert seen["503"] + seen["413"] > 0  # else it was no load
        photo = (SAMPLES / "astronaut.jpg").read_bytes()
        answer = httpx.post(f"{url}/segment", content=photo, headers=IMAGE, timeout=60)
        assert answer.status_code == 200
