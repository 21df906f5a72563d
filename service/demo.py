"""`python -m service.demo`: segment the sample photos with a real service and batch client.

It starts the service as a separate process on a free port, waits until it is ready,
sends the photos, prints the classes found, and stops the service.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from service.launch import free_port, stop, wait_until_ready
from service.settings import SAMPLES


def main(argv: list[str] | None = None) -> int:
    """Run the demo. Return 0 if every photo got its mask and the service stopped cleanly."""
    parser = argparse.ArgumentParser(
        prog="python -m service.demo",
        description="Segment two sample photos with the bundled model, through a real service.",
        epilog="example: python -m service.demo -o demo-output",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default="demo-output",
        help="folder for the results (default: %(default)s)",
    )
    out: Path = parser.parse_args(argv).out
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


def show(out: Path) -> None:
    """Print the classes in each photo, and the folder with the pictures."""
    for path in sorted(out.rglob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        shares = sorted(result["classes"], key=lambda found: -found["fraction"])
        listed = ", ".join(f"{found['name']} {found['fraction']:.1%}" for found in shares)
        print(f"{path.name.split('.')[0]:12} {result['width']}x{result['height']}  {listed}")
    print(f"masks and overlays: {out.resolve()}{os.sep}")


if __name__ == "__main__":
    raise SystemExit(main())
