"""Write docs/gpu.md from the figures of a GPU: `python -m service.bench.gpu_page`.

`docker/check_gpu.py --all --json docs/gpu.json` measures them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.bench.gpu import FORMAT
from service.bench.tables import Table

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = DOCS / "gpu.json"
PAGE = DOCS / "gpu.md"
INTRODUCTION = """\
# Measured on a GPU

Written by `python -m service.bench.gpu_page gpu.json`. To measure your own GPU, in
about ten minutes:

```
mkdir -p out
docker run --rm --gpus all --user "$(id -u)" -v "$PWD/out:/out" --entrypoint python deeplab:gpu \\
    docker/check_gpu.py --all --json /out/gpu.json
```

It starts the service for each case, compares its masks with those of ONNX Runtime on the CPU,
and sends photos with 1, 16 and 64 requests in flight. It also reloads the model and kills the
service under load. Everything that goes wrong is listed as a problem.
[Deployment](deploy.md#on-a-gpu) says which image fits which driver, and what the fp16 and TensorRT
cases need.
"""
NOTHING = """
**This script has not run on a GPU yet**, because none was available since it was written. It was
tried on a CPU, with `--device cpu`.
"""


def page(figures: dict[str, Any] | None) -> str:
    """The page for the figures of one run, or for none."""
    if figures is None:
        return INTRODUCTION + NOTHING
    parts = [about(figures), cases(figures).markdown(), loads(figures).markdown()]
    parts += [table.markdown() for table in (reloads(figures), kill(figures)) if table]
    parts.append(problems(figures))
    return "\n".join([INTRODUCTION, "\n\n".join(parts), ""])


def about(figures: dict[str, Any]) -> str:
    """Where and when it was measured."""
    card, host = figures["gpu"], figures["host"]
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    return (
        f"Measured on {figures['date']} in {figures['seconds']:.0f} s: **{card['name']}** with "
        f"{card['memory_mib']} MiB, driver {card['driver']} (CUDA {card['driver_cuda']}), "
        f"{host['cpus']} CPUs ({host['cpu']}).\n\n{versions}."
    )


def cases(figures: dict[str, Any]) -> Table:
    """Format the cases: device, start time, and agreement of the masks."""
    header = ("case", "file", "runs on", "engine build s", "ready s", "labels as on the CPU")
    rows = tuple(
        (
            case["name"],
            case.get("file", ""),
            case.get("provider", "did not run"),
            _number(case.get("build_s"), 0),
            _number(case.get("ready_s"), 1),
            f"{case['agreement']:.3%}" if "agreement" in case else "",
        )
        for case in figures["cases"]
    )
    return Table("Cases", header, rows)


def loads(figures: dict[str, Any]) -> Table:
    """Throughput and latency of each case with several requests in flight."""
    names = ("case", "in flight", "photos/s", "latency ms", "infer ms", "CPU ms", "GPU MiB")
    rows = tuple(
        (
            case["name"],
            str(load["in_flight"]),
            _number(load["photos_per_s"], 1),
            _number(load["latency_ms"], 1),
            _number(load["infer_ms"], 1),
            _number(load["cpu_ms"], 1),
            _number(load["gpu_mib_peak"], 0),
        )
        for case in figures["cases"]
        for load in case.get("loads", ())
    )
    note = "latency and infer: medians; CPU: processor time of the service per photo; GPU MiB: peak"
    return Table("Under load", names, rows, note)


def reloads(figures: dict[str, Any]) -> Table | None:
    """The reloads under load, if they ran."""
    found = figures.get("reload", {})
    if "reload_s" not in found:
        return None
    times = ", ".join(f"{each:.1f}" for each in found["reload_s"])
    before, after = (_number(found[f"gpu_mib_{when}"], 0) for when in ("before", "after"))
    row = (times, str(found["failures"]), before, after)
    header = ("each reload s", "failed requests", "GPU MiB before", "GPU MiB after")
    return Table("Reloads of the model under load", header, (row,))


def kill(figures: dict[str, Any]) -> Table | None:
    """The kill under load, if it ran."""
    found = figures.get("kill", {})
    if "ready_again_s" not in found:
        return None
    row = (_number(found["released_s"], 1), _number(found["ready_again_s"], 1))
    return Table("Killed under load", ("memory free after s", "next one ready after s"), (row,))


def problems(figures: dict[str, Any]) -> str:
    """List the problems of the run."""
    found = [f"- {problem}" for problem in figures["problems"]]
    return "\n".join(["**Problems**", "", *(found or ["None."])])


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def load(source: Path) -> dict[str, Any]:
    """Read the figures of a run; raises ValueError if they are not those of a GPU."""
    figures: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    if figures.get("format") != FORMAT:
        raise ValueError(f"{source}: format {figures.get('format')}, this command reads {FORMAT}")
    if figures["gpu"] is None:
        raise ValueError(f"{source} was measured without a GPU")
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page. Return 1 if the figures cannot be used."""
    p = argparse.ArgumentParser(prog="python -m service.bench.gpu_page", description=__doc__)
    p.add_argument(
        "figures",
        type=Path,
        nargs="?",
        help="JSON of a run on a GPU (default: docs/gpu.json, if it exists)",
    )
    p.add_argument(
        "-o", "--output", type=Path, default=PAGE, help="page to write (default: docs/gpu.md)"
    )
    args = p.parse_args(argv)
    source = args.figures or (FIGURES if FIGURES.exists() else None)
    try:
        figures = None if source is None else load(source)
        args.output.write_text(page(figures), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
