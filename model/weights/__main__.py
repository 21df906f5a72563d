"""Get published weights: `python -m model.weights {list,get}`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from model.checkpoint import CheckpointError
from model.convert.accounting import ConvertError
from model.weights import catalogue, get
from model.weights.catalogue import LEFT_OUT, WEIGHTS, UnknownWeightsError, Weights
from model.weights.digests import DigestError
from model.weights.download import DownloadError
from model.weights.selfcheck import SelfCheckError

EXAMPLES = """examples:
  python -m model.weights list
  python -m model.weights get xception65-voc-trainaug -o weights --export
  python -m model.weights get coral-mnv2-voc --from deeplabv3_mnv2_pascal_quant.tflite
  python -m model.weights get resnet101-imagenet    # presets start from it

Proxies are taken from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.
"""
FAILURES = (DownloadError, DigestError, ConvertError, SelfCheckError, CheckpointError, OSError)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.weights",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("list", help="names, networks, published mIoU, sizes, licences")
    shown.add_argument("--json", action="store_true", help="print the table as JSON")
    shown.set_defaults(run=run_list)
    g = commands.add_parser("get", help="download, convert and check one of them")
    g.add_argument("name", metavar="NAME", help="as in the list")
    g.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("weights"),
        metavar="DIR",
        help="folder of NAME.safetensors and NAME.json (default: weights)",
    )
    g.add_argument(
        "--from", dest="given", type=Path, metavar="FILE", help="the published file, if it is here"
    )
    g.add_argument("--export", action="store_true", help="also write DIR/NAME.onnx to serve")
    g.set_defaults(run=run_get)
    return p


def main(argv: list[str] | None = None) -> int:
    """Return 0 on success, 1 for a failure, 2 for an unknown name, 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except UnknownWeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return 130


def run_list(args: argparse.Namespace) -> int:
    """Print the table, and the published weights that are not in it."""
    if args.json:
        print(json.dumps([weights.model_dump() for weights in WEIGHTS.values()], indent=2))
        return 0
    print(table([*WEIGHTS.values()]))
    print("\nNot converted:")
    for name, reason in LEFT_OUT.items():
        print(f"  {name}: {reason}")
    return 0


def table(rows: list[Weights]) -> str:
    """Format the weights as aligned columns; mIoU is the publishers', in percent."""
    cells = [("NAME", "NETWORK", "TRAINED ON", "MIOU AS PUBLISHED", "MB", "LICENCE", "SOURCE")]
    for each in rows:
        size = f"{each.size / 1e6:.0f}" if each.size > 1e7 else f"{each.size / 1e6:.1f}"
        shown = (each.network, each.trained_on, each.miou or "-", size, each.licence, each.url)
        cells.append((each.name, *shown))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True))
        for row in cells
    )


def run_get(args: argparse.Namespace) -> int:
    """Write the checkpoint and, with --export, the file to serve."""
    weights = catalogue.find(args.name)
    if args.export and weights.dataset == "imagenet":
        print(f"error: {weights.name} has no head to export: train from it", file=sys.stderr)
        return 2
    if args.given is not None and not args.given.is_file():
        print(f"error: --from {args.given} is no file", file=sys.stderr)
        return 2
    written = get.get(weights, args.out, args.given)
    if not args.export:
        return 0
    if not get.has_head(written):
        print(f"error: {written} has no head to export: train from it", file=sys.stderr)
        return 1
    return get.export(weights, args.out)


if __name__ == "__main__":
    raise SystemExit(main())
