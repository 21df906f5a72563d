"""The command line of the batch client.

`deeplab-client URL INPUTS... -o OUT`, `--local INPUTS... -o OUT`, `report OUT`, `export OUT`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx

from service.client import flags, local, records
from service.client.batch import Batch, Limits, on_retry
from service.client.errors import ClientError, ManifestError, StatusError, UsageError
from service.client.files import read_photo
from service.client.flags import positive
from service.client.inputs import Inputs, nothing_found
from service.client.manifest import FILE_NAME, Manifest
from service.client.pace import Pace
from service.client.plain import plain
from service.client.plan import Decision, Wanted, decide, tally_text
from service.client.progress import Counts, Progress
from service.client.protocol import ModelInfo, parse_outputs
from service.client.records import Results
from service.client.report import write_report
from service.client.retry import Outcome, RetryPolicy
from service.client.route import shown
from service.client.summary import Summary
from service.client.transport import TIMEOUT_S, AsyncClient
from service.client.uploads import require_pillow

EXAMPLES = """\
examples:
  deeplab-client http://localhost:8000 photos/ -o out/
  deeplab-client http://localhost:8000 'photos/**/*.jpg' -o out/ --output mask,json
  find /data -name '*.jpg' | deeplab-client http://localhost:8000 - -o out/
  deeplab-client http://localhost:8000 photos.tar -o out/ --report
  deeplab-client http://localhost:8000 scans/ -o out/ --fit sliding --classes person,car
  deeplab-client --local photos/ -o out/ --models exported/
  deeplab-client report out/
  deeplab-client export out/ --format coco -o predictions.json

Run the same command again to continue after an interruption: complete photos are
skipped; changed photos and photos of another model are done again. See docs/client.md.
Exit code: 0 every photo has a result, 1 some have none, 2 wrong usage.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["report"]:
            return _report(_report_parser().parse_args(arguments[1:]))
        if arguments[:1] == ["export"]:
            return _export(arguments[1:])
        return asyncio.run(_run(_options(arguments)))
    except UsageError as error:
        print(plain(f"deeplab-client: {error}"), file=sys.stderr)
        return 2
    except (ClientError, OSError) as error:
        print(plain(f"deeplab-client: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return 130


def _options(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments; raises UsageError if the URL or the inputs are missing."""
    options = _parser().parse_intermixed_args(arguments)
    if options.local:
        options.url = local.URL
        return options
    if options.models is not None:
        raise UsageError("--models is for --local: a service has models of its own")
    options.url, *options.inputs = options.inputs
    if not options.inputs and "://" not in options.url:
        raise UsageError(
            f"the URL of the service is missing before {options.url!r}: write it as "
            "http://HOST:PORT, or --local to run without a service"
        )
    if not options.inputs:
        raise UsageError(f"the inputs are missing after {options.url}: name files or folders")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deeplab-client",
        usage="%(prog)s [options] (URL | --local) INPUT [INPUT ...] -o OUT",
        description="Segment many photos with the service; write masks and overlays to a folder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "inputs",
        metavar="URL INPUT",
        nargs="+",
        help="URL of the service, such as http://localhost:8000; then files, folders, globs or "
        "tars; - reads paths from stdin",
    )
    add("-o", "--out", metavar="OUT", type=Path, required=True, help="folder for the results")
    add("--model", metavar="NAME", help="name of the model (default: the service's default model)")
    flags.add_results(parser)
    flags.add_query(parser)
    flags.add_limits(parser)
    _add_connection(parser)
    _add_local(parser)
    return parser


def _add_local(parser: argparse.ArgumentParser) -> None:
    """Add the flags for a run without a service."""
    add = parser.add_argument_group("without a service").add_argument
    engine = "run the service's engine in this process, with all CPUs or the GPU; no URL"
    add("--local", action="store_true", help=engine)
    models = "with --local: folder with exported .onnx files (default: the bundled model)"
    add("--models", metavar="DIR", type=Path, help=models)


def _add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the connection to the service."""
    add = parser.add_argument_group("connection").add_argument
    patience, key = RetryPolicy.give_up_after_s, os.environ.get("DEEPLAB_API_KEY")
    add(
        "--concurrency",
        metavar="N",
        type=_concurrency,
        help="requests at a time, or auto (default: auto)",
    )
    add(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=TIMEOUT_S,
        help="seconds that one try may take (default: %(default)g)",
    )
    tries = "seconds that all tries of one photo may take (default: %(default)g)"
    add("--give-up-after", metavar="SECONDS", type=float, default=patience, help=tries)
    add(
        "--api-key",
        metavar="KEY",
        default=key,
        help="API key; other users of this machine see flags, so set DEEPLAB_API_KEY instead",
    )


def _report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deeplab-client report",
        description="Write report.csv, contact-sheet.html and contact-sheet.png of the results.",
        epilog="example:\n  deeplab-client report out/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder with the results of a run")
    parser.add_argument("--json", action="store_true", help="print the files' paths as JSON")
    return parser


def _report(options: argparse.Namespace) -> int:
    with _results(options.out) as results:
        written, missing = write_report(options.out, results)
    for reason in missing:
        print(plain(reason), file=sys.stderr)
    files = [str(path) for path in written]
    print(
        json.dumps({"files": files, "missing": missing})
        if options.json
        else "\n".join(map(plain, files))
    )
    return 0


def _export(arguments: Sequence[str]) -> int:
    """Run `export`, whose libraries the client otherwise does without."""
    try:
        from service.client import export  # noqa: PLC0415 - needs the extra `labels`
    except ModuleNotFoundError as error:
        raise UsageError(
            f"export needs {error.name}, which is not installed: pip install '.[labels]'"
        ) from None
    options = export.parser().parse_args(arguments)
    with _results(options.results) as results:
        exported = export.run(options, results)
    if options.json:
        print(json.dumps(exported.json()))
    else:
        for line in exported.lines():
            print(plain(line), file=sys.stderr)
        print(plain(f"wrote {options.out}: {exported.photos} photos, {exported.shapes} shapes"))
    return int(bool(exported.problems))


@contextmanager
def _results(out: Path) -> Iterator[Results]:
    """Open the results in OUT: the manifest, or the records of a Ray batch."""
    parts = out / records.FOLDER
    if parts.is_dir() and not (out / FILE_NAME).exists():
        found = {str(path.relative_to(out)): path for path in sorted(parts.iterdir())}
        yield records.collected(found, lambda name: read_photo(found[name]))
        return
    with Manifest(out / FILE_NAME, read_only=True) as manifest:
        yield manifest


async def _run(options: argparse.Namespace) -> int:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # file names may be any bytes
    inputs = Inputs.of(options.inputs, out=options.out, listing=sys.stdin, base=options.base)
    outputs = parse_outputs(options.output)
    if options.max_side is not None:
        require_pillow("--max-side")
    pace = Pace() if options.concurrency is None else Pace.fixed(options.concurrency)
    progress = Progress(Counts(), sys.stderr)
    async with _connected(options, pace, progress) as client:
        try:
            model = await _choose(client, options.model)
        except StatusError as error:
            if error.status != 404:
                raise
            raise _wrong_url(options.url) from error
        wanted = Wanted(
            outputs=outputs,
            pixels=options.report,
            model=options.model if model is None else model.name,
            model_digest=None if model is None else model.digest,
            max_side=options.max_side,
            options=flags.query(options),
            retry_rejected=options.retry_failed,
        )
        if options.dry_run:
            return _dry_run(inputs, wanted, options.out, as_json=options.json)
        options.out.mkdir(parents=True, exist_ok=True)
        with Manifest(options.out / FILE_NAME) as manifest:
            if model is not None and model.classes:
                manifest.set_classes(model.classes)
            limits = Limits(flags.most_failures(options))
            batch = Batch(client, inputs, options.out, wanted, manifest, pace, progress, limits)
            summary = await _work(batch)
            if options.report:
                for note in itertools.chain(*write_report(options.out, manifest)):
                    print(plain(note), file=sys.stderr)
            return _tell(summary, as_json=options.json)


async def _work(batch: Batch) -> Summary:
    """Run the batch until it ends or stops early, with progress on stderr."""
    began, stopped = time.monotonic(), None
    threading.Thread(target=_count, args=(batch.inputs, batch.progress), daemon=True).start()
    try:
        await batch.run()
    except (ManifestError, UsageError):
        raise
    except ClientError as error:
        stopped = str(error)
    finally:
        batch.progress.close()
    if stopped is None and not batch.counts.settled():
        raise nothing_found(batch.inputs.arguments, batch.inputs.others)
    model = (batch.wanted.model, batch.wanted.model_digest)
    seconds, others = time.monotonic() - began, batch.inputs.others
    return Summary.of(batch.counts, seconds, batch.manifest, model, stopped, others=others)


def _count(inputs: Inputs, progress: Progress) -> None:
    """Count the inputs, which may take seconds, in parallel: only the ETA needs the number."""
    progress.total = inputs.count()


def _tell(summary: Summary, *, as_json: bool) -> int:
    print(json.dumps(summary.json(), indent=2) if as_json else summary.text())
    return summary.exit_code()


@asynccontextmanager
async def _connected(
    options: argparse.Namespace, pace: Pace, progress: Progress
) -> AsyncIterator[AsyncClient]:
    """Give a client of the service, or of one in this process."""
    if not options.local:
        async with _client(options, pace, progress) as client:
            yield client
        return
    async with (
        local.transport(options.models, options.model, options.timeout) as transport,
        _client(options, pace, progress, transport) as client,
    ):
        yield client


def _client(
    options: argparse.Namespace,
    pace: Pace,
    progress: Progress,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncClient:
    throttle = on_retry(pace)
    told = False

    def heard(outcome: Outcome) -> None:
        nonlocal told
        throttle(outcome)
        if not told and not isinstance(outcome, httpx.Response):
            told = True
            reason = str(outcome) or type(outcome).__name__
            place, patience = shown(httpx.URL(options.url)), f"{options.give_up_after:g} s"
            progress.note(f"{place}: {reason} (trying for {patience}: --give-up-after)")

    return AsyncClient(
        options.url,
        api_key=options.api_key,
        timeout_s=options.timeout,
        retry=RetryPolicy(give_up_after_s=options.give_up_after),
        on_retry=heard,
        transport=transport,
    )


async def _choose(client: AsyncClient, name: str | None) -> ModelInfo | None:
    """Return the model to use; raises UsageError if the service does not have it."""
    models = await client.models()
    if name is None:
        return next((model for model in models if model.default), None)
    for model in models:
        if model.name == name:
            return model
    raise UsageError(f"--model {name}: the service has {', '.join(model.name for model in models)}")


def _wrong_url(text: str) -> UsageError:
    """Return the error for a URL below which there is no `/models`."""
    url = httpx.URL(text)
    path = url.path.rstrip("/")
    told = f"URL {shown(url)}: GET {path}/models does not exist there"
    if not path:
        return UsageError(f"{told}: is this the service's port, or another program's?")
    return UsageError(
        f"{told}: the URL has a path, {path}; write http://HOST:PORT, or with the prefix "
        "under which a proxy serves it"
    )


def _dry_run(inputs: Inputs, wanted: Wanted, out: Path, *, as_json: bool) -> int:
    """Print the names of the photos to send, then the counts."""
    tally = dict.fromkeys(Decision, 0)
    path = out / FILE_NAME
    seen: dict[str, str] = {}  # name -> source, as a run would record them in the manifest
    with (
        Manifest(path, read_only=True) if path.is_file() else Manifest(Path(":memory:")) as manifest
    ):
        for photo in inputs:
            if photo.name not in seen:
                decision = decide(photo, wanted, manifest, out)
            elif seen[photo.name] == photo.source:
                decision = Decision.REPEAT
            else:
                decision = Decision.CLASH
            seen.setdefault(photo.name, photo.source)
            tally[decision] += 1
            if decision is Decision.SEND and not as_json:
                print(plain(photo.name))
    if not any(tally.values()):
        raise nothing_found(inputs.arguments, inputs.others)
    counts = {decision.value: count for decision, count in tally.items()}
    if as_json:
        print(json.dumps(counts))
    else:
        print(tally_text(counts), file=sys.stderr)
        if inputs.others.counts:
            print(plain(inputs.others.text()), file=sys.stderr)
    return 0


def _concurrency(text: str) -> int | None:
    return None if text == "auto" else positive(text)
