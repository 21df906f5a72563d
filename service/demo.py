"""`python -m service.demo`: the sample photos through a real service and the batch client.

Starts the service on a free port as a process of its own, waits until it is
ready, sends the photos as a user would, prints what was found and stops it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

SAMPLES = Path(__file__).parent / "samples"
START_TIMEOUT_S = 120


def main() -> int:
    """Run the demo; 0 when every photo has its mask and the service stopped cleanly."""
    out = Path("demo-output")
    url = f"http://127.0.0.1:{free_port()}"
    print(f"starting the service on {url}")
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "service", "--port", port, "--log-level", "warning"]
    server = subprocess.Popen(command)
    try:
        wait_until_ready(url, server)
        client = [sys.executable, "-m", "service.client", url, str(SAMPLES), "-o", str(out)]
        code = subprocess.call([*client, "--output", "mask,overlay,json"])
        if code == 0:
            show(out)
    finally:
        stopped = stop(server)
    return code or stopped


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Poll /readyz; raises SystemExit when the service ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the service ended with code {server.returncode}, see above")
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"the service was not ready within {START_TIMEOUT_S} s")


def show(out: Path) -> None:
    """Print the classes found in each photo and where the pictures lie."""
    for path in sorted(out.rglob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        shares = sorted(result["classes"], key=lambda found: -found["fraction"])
        listed = ", ".join(f"{found['name']} {found['fraction']:.1%}" for found in shares)
        print(f"{path.name.split('.')[0]:12} {result['width']}x{result['height']}  {listed}")
    print(f"masks and overlays: {out.resolve()}{os.sep}")


def stop(server: subprocess.Popen[bytes]) -> int:
    """Ask the service to stop and return its exit code."""
    server.send_signal(signal.SIGTERM)
    return server.wait(timeout=60)


if __name__ == "__main__":
    raise SystemExit(main())
