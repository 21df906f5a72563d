"""Compare the running service with its bare engine: `python -m service.bench`.

Both get the same photos on the same host. The engine runs in this process on decoded
photos, one at a time, and several at a time where the service does that. The service gets
JPEG forms over HTTP from a load generator in a separate process. Because machines are
noisy, all contestants take turns in every round, and ratios of medians are compared.
`export.bench` adds a plain PyTorch handler as a contestant.
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
        description="Compare the running service with its bare engine. Does not need torch.",
        epilog="example: python -m service.bench models/light.onnx --rounds 3 --json bench.json",
    )
    p.add_argument("file", type=Path, nargs="?", help="exported file (default: the bundled model)")
    p.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default: 5)")
    add_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Return 1 if a server does not start or answer."""
    args = parser().parse_args(argv)
    file = args.file or min(BUNDLED.glob("*.onnx"))
    options = BenchOptions(
        file,
        tuple(args.photos),
        args.rounds,
        args.seconds,
        args.megapixels,
        args.device,
        args.rivals,
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
