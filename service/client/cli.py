"""The command line of the batch client.

`deeplab-client URL INPUTS... -o OUT`, `--local INPUTS... -o OUT`, `report OUT`, `export OUT`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from service.client import flags, local, records, selection
from service.client.batch import Batch, Limits
from service.client.connection import choose, connected
from service.client.errors import ClientError, ManifestError, UsageError
from service.client.files import read_photo
from service.client.inputs import Inputs, nothing_found, stdin
from service.client.jobs.command import main as jobs
from service.client.manifest import FILE_NAME, Manifest
from service.client.pace import Pace
from service.client.plain import counted, plain
from service.client.plan import Decision, Wanted, decide, tally_text
from service.client.progress import Counts, Progress
from service.client.protocol import parse_outputs
from service.client.records import Results
from service.client.report import write_report
from service.client.summary import Summary
from service.client.uploads import require_pillow
from service.client.urls import is_url

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"),
    *(".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".3gp", ".wmv", ".flv"),
)
EXAMPLES = """\
examples:
  deeplab-client http://localhost:8000 photos/ -o out/
  deeplab-client http://localhost:8000 'photos/**/*.jpg' -o out/ --output mask,json
  find /data -name '*.jpg' | deeplab-client http://localhost:8000 - -o out/
  deeplab-client http://localhost:8000 photos.tar -o out/ --report
  deeplab-client http://localhost:8000 scans/ -o out/ --fit sliding --classes person,car
  deeplab-client --local photos/ -o out/ --models exported/
  deeplab-client http://localhost:8000 clip.mp4 -o out.mp4 --steady 5
  deeplab-client http://localhost:8000 https://example.org/cat.jpg --urls list.txt -o out/
  deeplab-client jobs submit http://localhost:8000 photos/ -o results.zip
  deeplab-client report out/
  deeplab-client export out/ --format coco -o predictions.json

Run the same command again to continue after an interruption: complete photos are
skipped; changed photos and photos of another model are done again. A video becomes a video,
with its sound. See docs/client.md.
Exit code: 0 every photo has a result, 1 some have none, 2 wrong usage.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        commands = {"report": _report, "export": _export, "jobs": jobs}
        if arguments[:1] and arguments[0] in commands:
            return commands[arguments[0]](arguments[1:])
        options = _options(arguments)
        return asyncio.run(_video(options) if is_video(options) else _run(options))
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
        if not options.inputs and options.urls is None:
            raise UsageError("the inputs are missing: name files or folders")
        return options
    if options.models is not None:
        raise UsageError("--models is for --local: a service has models of its own")
    if not options.inputs:
        raise UsageError("the URL of the service is missing: write it as http://HOST:PORT")
    options.url, *options.inputs = options.inputs
    has_url = "://" in options.url
    if options.inputs or (options.urls is not None and has_url):
        return options
    if not has_url:
        raise UsageError(
            f"the URL of the service is missing before {options.url!r}: write it as "
            "http://HOST:PORT, or --local to run without a service"
        )
    raise UsageError(f"the inputs are missing after {options.url}: name files or folders")


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
        nargs="*",
        help="URL of the service, such as http://localhost:8000; then files, folders, globs, "
        "tars or URLs of photos; - reads paths and URLs from stdin",
    )
    add(
        "--urls",
        metavar="FILE",
        help="list of URLs, one a line (-: stdin), of hosts that the service allows",
    )
    add(
        "-o",
        "--out",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder for the results; a video for a video",
    )
    add("--model", metavar="NAME", help="name of the model (default: the service's default model)")
    flags.add_version(parser)
    flags.add_results(parser)
    flags.add_query(parser)
    flags.add_video(parser)
    flags.add_limits(parser)
    flags.add_connection(parser)
    _add_local(parser)
    return parser


def _add_local(parser: argparse.ArgumentParser) -> None:
    """Add the flags for a run without a service."""
    add = parser.add_argument_group("without a service").add_argument
    engine = "run the service's engine in this process, with all CPUs or the GPU; no URL"
    add("--local", action="store_true", help=engine)
    models = "with --local: folder with exported .onnx files (default: the bundled model)"
    add("--models", metavar="DIR", type=Path, help=models)


def _report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deeplab-client report",
        description="Write report.csv, contact-sheet.html and contact-sheet.png of the results.",
        epilog=(
            "examples:\n  deeplab-client report out/\n"
            "  deeplab-client report out/ --where 'person > 0.05 and not car > 10%'\n"
            "  deeplab-client report out/ --where 'confidence < 60%' --copy doubtful/"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder with the results of a run")
    where_help = "print the photos that an expression is true for, and write no report"
    parser.add_argument("--where", metavar="EXPRESSION", help=where_help)
    copy_help = "with --where: copy these photos into this folder"
    parser.add_argument("--copy", metavar="DIR", type=Path, help=copy_help)
    parser.add_argument("--json", action="store_true", help="print the files' paths as JSON")
    return parser


def _report(arguments: Sequence[str]) -> int:
    options = _report_parser().parse_args(arguments)
    if options.where is not None:
        return _select(options)
    if options.copy is not None:
        raise UsageError("--copy copies the photos that --where chooses: give --where")
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


def _select(options: argparse.Namespace) -> int:
    """Print or copy the photos that --where chooses."""
    with _results(options.out) as results:
        found = selection.chosen(results, options.where)
    failed = [] if options.copy is None else selection.copied(found, options.copy)
    if options.json:
        photos = [{"photo": each.name, "source": each.source} for each in found]
        print(json.dumps({"photos": photos, "not_copied": failed}))
    else:
        for each in found:
            print(plain(each.source))
    for reason in failed:
        print(plain(reason), file=sys.stderr)
    return int(bool(failed))


def _export(arguments: Sequence[str]) -> int:
    """Run `export`, whose libraries the rest of the client does not need."""
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
        found = f"{counted(exported.photos, 'photo')}, {counted(exported.shapes, 'shape')}"
        print(plain(f"wrote {options.out}: {found}"))
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


def is_video(options: argparse.Namespace) -> bool:
    """Return whether the input is a video; raises UsageError for wrong inputs or a wrong OUT."""
    videos = [each for each in options.inputs if each.lower().endswith(VIDEO_SUFFIXES)]
    if not videos:
        if options.steady > 1:
            raise UsageError("--steady is for videos: no input is one")
        return False
    if is_url(videos[0]):
        raise UsageError(f"{videos[0]} is a video: download it, and name the file")
    if options.urls is not None:
        raise UsageError("--urls is for photos: give the video alone")
    if len(options.inputs) > 1:
        raise UsageError(f"{videos[0]} is a video: give it alone, with -o naming the new video")
    if options.out.suffix.lower() not in VIDEO_SUFFIXES or options.out.is_dir():
        raise UsageError(f"{videos[0]} is a video: -o {options.out} must name one, such as out.mp4")
    if Path(videos[0]).resolve() == options.out.resolve():
        raise UsageError(f"-o {options.out} is the input: name another file")
    return True


async def _video(options: argparse.Namespace) -> int:
    for library in ("av", "numpy"):
        if importlib.util.find_spec(library) is None:
            raise UsageError(
                f"videos need {library}, which is not installed: in the checkout, run "
                "pip install '.[video]'"
            )
    from service.client.video import command  # noqa: PLC0415 - loaded only for videos

    return await command.run(options)


async def _run(options: argparse.Namespace) -> int:
    inputs = Inputs.of(
        options.inputs,
        out=options.out,
        listing=stdin(),
        base=options.base,
        url_list=options.urls,
    )
    outputs = parse_outputs(options.output)
    if options.max_side is not None:
        require_pillow("--max-side")
    pace = Pace() if options.concurrency is None else Pace.fixed(options.concurrency)
    progress = Progress(Counts(), sys.stderr)
    async with connected(options, pace, progress) as client:
        model = await choose(client, options)
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
        raise nothing_found(batch.inputs.named(), batch.inputs.others)
    model = (batch.wanted.model, batch.wanted.model_digest)
    seconds, others = time.monotonic() - began, batch.inputs.others
    return Summary.of(batch.counts, seconds, batch.manifest, model, stopped, others=others)


def _count(inputs: Inputs, progress: Progress) -> None:
    """Count the inputs, which may take seconds, in parallel: only the ETA needs the number."""
    progress.total = inputs.count()


def _tell(summary: Summary, *, as_json: bool) -> int:
    print(json.dumps(summary.json(), indent=2) if as_json else summary.text())
    return summary.exit_code()


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
        raise nothing_found(inputs.named(), inputs.others)
    counts = {decision.value: count for decision, count in tally.items()}
    if as_json:
        print(json.dumps(counts))
    else:
        print(tally_text(counts), file=sys.stderr)
        if inputs.others.counts:
            print(plain(inputs.others.text()), file=sys.stderr)
    return 0
