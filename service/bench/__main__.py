"""The running service against its own engine: `python -m service.bench`.

Both get the same photos on the same host. The engine gets them decoded and takes
them one after another in this process, or several at once where the service does
that; the service gets them as JPEG forms over HTTP from a load generator in a
process of its own. Machines differ and are noisy:
all contestants take turns, round after round, and ratios of medians count.
`export.bench` adds a plain PyTorch handler as one more contestant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from service.bench.measure import BenchOptions, add_options, output, run, tables
from service.errors import StartupError
from service.settings import BUNDLED


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m service.bench",
        description="Compare the running service with its bare engine; needs no torch.",
        epilog="example: python -m service.bench models/light.onnx --rounds 3 --json bench.json",
    )
    p.add_argument("file", type=Path, nargs="?", help="exported file (the bundled model)")
    p.add_argument("--rounds", type=int, default=5)
    add_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a server does not start or answer."""
    args = parser().parse_args(argv)
    file = args.file or min(BUNDLED.glob("*.onnx"))
    options = BenchOptions(
        file, tuple(args.photos), args.rounds, args.seconds, args.megapixels, args.device
    )
    try:
        result = run(options)
    except (StartupError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    output(result, tables(result), args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
