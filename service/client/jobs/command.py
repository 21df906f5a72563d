"""`deeplab-client jobs`: submit, watch, fetch, cancel and list jobs of the service."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx

from service.client import flags
from service.client.errors import ClientError, StatusError, UsageError
from service.client.inputs import STDIN, Inputs, nothing_found, stdin
from service.client.jobs import archive
from service.client.jobs.job import Job
from service.client.plain import counted, plain
from service.client.progress import Counts, Progress
from service.client.protocol import parse_outputs, refusal
from service.client.retry import Outcome, RetryPolicy
from service.client.transport import AsyncClient
from service.client.uploads import require_pillow
from service.client.urls import is_url, lines

REDRAW_S = 0.5
FAILURES_SHOWN = 20
EXAMPLES = """\
examples:
  deeplab-client jobs submit http://localhost:8000 photos/ -o results.zip
  deeplab-client jobs submit http://localhost:8000 photos.zip --output mask,json
  deeplab-client jobs submit http://localhost:8000 --urls list.txt
  deeplab-client jobs submit http://localhost:8000 --paths scans/2024
  deeplab-client jobs watch http://localhost:8000 ID
  deeplab-client jobs fetch http://localhost:8000 ID -o results.zip
  deeplab-client jobs list http://localhost:8000
  deeplab-client jobs cancel http://localhost:8000 ID

Submit prints the id of the job, unless -o makes it wait for the result. A download that
was interrupted continues where it stopped. See docs/client.md.
Exit code: 0 every photo has a result, 1 some have none, 2 wrong usage.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code. Raises ClientError, OSError, KeyboardInterrupt."""
    parser = _parser()
    command = parser.parse_args(arguments[:1]).command
    options = _add_command(command).parse_intermixed_args(arguments[1:])
    try:
        return asyncio.run(_run(options))
    except KeyboardInterrupt:
        if options.run is not _submit:
            raise
        print("\ninterrupted", file=sys.stderr)  # running it again would make another job
        return 130


async def _run(options: argparse.Namespace) -> int:
    client = AsyncClient(
        options.url,
        api_key=options.api_key,
        timeout_s=options.timeout,
        retry=RetryPolicy(give_up_after_s=options.give_up_after),
        on_retry=_teller(options.give_up_after),
    )
    async with client:
        try:
            done: int = await options.run(client, options)
            return done
        except StatusError as error:
            raise _explained(error, options) from error


def _teller(patience_s: float) -> Callable[[Outcome], None]:
    """Return a function that prints each reason for a retry once."""
    told: set[str] = set()

    def tell(outcome: Outcome) -> None:
        error = refusal(outcome) if isinstance(outcome, httpx.Response) else outcome
        reason = str(error) or type(error).__name__
        if reason not in told:
            told.add(reason)
            line = f"{reason} (trying for {patience_s:g} s: --give-up-after)"
            print(plain(line), file=sys.stderr)

    return tell


def _explained(error: StatusError, options: argparse.Namespace) -> ClientError:
    """Return the error, with advice on what to change where that is known."""
    if error.status in {404, 405} and error.code not in {"unknown-job", "unknown-model"}:
        return UsageError(
            f"{options.url} has no jobs: start the service with --jobs DIR, or correct the URL"
        )
    if error.code == "invalid-request" and options.run is _submit:
        of_photos = error.detail.startswith(("url", "paths", "the ZIP"))
        hint = "" if of_photos else f": {flags.correction(flags.query(options), error.detail)}"
        return UsageError(f"the service refuses the job: {error.detail}{hint}")
    return error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deeplab-client jobs",
        usage="%(prog)s COMMAND URL ...",
        description="Let the service work on many photos in the background.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    told = "; ".join(f"{name}: {about}" for name, (_, about) in _commands().items())
    parser.add_argument("command", metavar="COMMAND", choices=tuple(_commands()), help=told)
    return parser


def _commands() -> dict[str, tuple[Callable[..., Any], str]]:
    """Return what each command runs, and what it does."""
    return {
        "submit": (_submit, "queue photos"),
        "watch": (_watch, "show the progress of a job until it ends"),
        "fetch": (_fetch, "wait until a job ends, and download its result"),
        "cancel": (_cancel, "cancel jobs if they run, and remove them with their results"),
        "list": (_list, "list the jobs of your key"),
    }


def _add_command(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command's arguments."""
    run, about = _commands()[name]
    parser = argparse.ArgumentParser(
        prog=f"deeplab-client jobs {name}", description=f"{about[0].upper()}{about[1:]}."
    )
    parser.set_defaults(run=run)
    parser.add_argument("url", metavar="URL", help="of the service, such as http://localhost:8000")
    if name == "submit":
        _add_submit(parser)
    elif name != "list":
        several = "+" if name == "cancel" else None
        parser.add_argument("id", metavar="ID", nargs=several, help="what submit printed")
    if name == "fetch":
        _add_out(parser, required=True)
    parser.add_argument("--json", action="store_true", help="print the state as JSON")
    flags.add_connection(parser, concurrency=False)
    return parser


def _add_out(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    text = "new file for the ZIP of the results"
    text += "" if required else "; waits until the job ends"
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, required=required, help=text)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    told = "a ZIP; or files, folders, globs and tars, which are packed into one; or URLs"
    add("inputs", metavar="INPUT", nargs="*", help=told)
    add("--urls", metavar="FILE", help="list of URLs, one a line (-: stdin)")
    add(
        "--paths",
        metavar="PATH",
        nargs="+",
        default=[],
        help="files and folders below the service's own folder for jobs (--job-inputs)",
    )
    _add_out(parser)
    add("--output", metavar="LIST", default=flags.DEFAULT_OUTPUT, help=flags.OUTPUT_HELP)
    add("--model", metavar="NAME", help="name of the model (default: the service's default model)")
    flags.add_files(parser)
    flags.add_query(parser)


async def _submit(client: AsyncClient, options: argparse.Namespace) -> int:
    """Queue a job; with -o, wait for it and fetch the result."""
    if options.out is not None:
        _check_out(options.out)
    job = await _submitted(client, options)
    if options.out is None:
        print(json.dumps(asdict(job)) if options.json else job.id)
        return 0
    print(f"job {job.id}: {counted(job.photos, 'photo')}", file=sys.stderr)
    try:
        return await _result(client, job.id, options)
    except asyncio.CancelledError:
        again = f"deeplab-client jobs fetch {options.url} {job.id} -o {options.out}"
        print(plain(f"\nthe job continues; to fetch its result: {again}"), file=sys.stderr)
        raise


async def _submitted(client: AsyncClient, options: argparse.Namespace) -> Job:
    outputs = ",".join(parse_outputs(options.output))
    ask = {
        "output": outputs,
        "model": options.model,
        "options": dict(parse_qsl(flags.query(options))),
    }
    urls = _urls(options)
    if bool(options.inputs) + bool(options.urls) + bool(options.paths) != 1:
        raise UsageError("give the photos by exactly one of INPUT, --urls FILE and --paths PATH")
    if options.paths or urls:
        return await client.submit_job(urls=urls, paths=options.paths, **ask)
    if archives := [each for each in options.inputs if each.lower().endswith(".zip")]:
        return await client.submit_job(_zip(archives, options), **ask)
    if options.max_side is not None:
        require_pillow("--max-side")
    inputs = _inputs(options)
    with archive.packed(inputs, options.max_side) as (path, photos):
        if not photos:
            raise nothing_found(inputs.named(), inputs.others)
        if inputs.others.counts:
            print(plain(inputs.others.text()), file=sys.stderr)
        return await client.submit_job(path, **ask)


def _urls(options: argparse.Namespace) -> list[str]:
    """Return the URLs of the job; raises UsageError for a list that is missing or empty."""
    if options.inputs and all(map(is_url, options.inputs)):
        return list(options.inputs)
    if options.urls is None:
        return []
    try:
        text = sys.stdin.read() if options.urls == STDIN else Path(options.urls).read_text("utf-8")
        found = list(lines(text.splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--urls {options.urls}: {error}") from None
    if wrong := next((each for each in found if not is_url(each)), None):
        raise UsageError(f"--urls {options.urls}: {wrong[:200]!r} is no URL")
    if not found:
        raise UsageError(f"--urls {options.urls}: it has no URL")
    return found


def _zip(archives: list[str], options: argparse.Namespace) -> Path:
    if len(options.inputs) > 1:
        raise UsageError(f"{archives[0]}: a ZIP is sent alone, make a job of each")
    if options.max_side is not None:
        raise UsageError("--max-side shrinks files and folders, not the photos in a ZIP")
    path = Path(archives[0])
    if not path.is_file():
        raise UsageError(f"input {archives[0]!r}: no such file")
    return path


def _inputs(options: argparse.Namespace) -> Inputs:
    out = options.out or Path("results.zip")
    return Inputs.of(options.inputs, out=out, listing=stdin(), base=options.base)


async def _watch(client: AsyncClient, options: argparse.Namespace) -> int:
    """Show the progress until the job ends."""
    job = await _ended(client, options.id)
    if options.json:
        print(json.dumps(asdict(job)))
    if job.error is not None:
        print(f"job {job.id} failed: {job.error}", file=sys.stderr)
    elif job.failed:
        print(f"without a result: {job.failed} of {counted(job.photos, 'photo')}", file=sys.stderr)
    return int(job.state != "done" or job.failed > 0)


async def _ended(client: AsyncClient, name: str) -> Job:
    """Wait until a job ends, with its progress on stderr."""
    counts = Counts()
    progress = Progress(counts, sys.stderr)

    def show(job: Job) -> None:
        if progress.total is None:  # photos finished earlier do not count in the rate
            progress.total, counts.skipped = job.photos, job.done - job.failed
        counts.failed = job.failed
        counts.sent = job.done - job.failed - counts.skipped
        progress.update()

    try:
        return await client.watch_job(name, show)
    finally:
        progress.close()


async def _fetch(client: AsyncClient, options: argparse.Namespace) -> int:
    """Wait until the job ends, and download its result."""
    _check_out(options.out)
    return await _result(client, options.id, options)


async def _result(client: AsyncClient, name: str, options: argparse.Namespace) -> int:
    job = await _ended(client, name)
    if job.state == "failed":
        raise ClientError(f"job {job.id} failed: {job.error}")
    await client.fetch_job(job.id, options.out, _Download())
    failed = archive.failures(options.out)
    if options.json:
        told = [{"name": photo, "reason": reason} for photo, reason in failed]
        print(json.dumps({**asdict(job), "result": str(options.out), "failures": told}))
    else:
        of_all = f"{job.photos - len(failed)} of {counted(job.photos, 'photo')}"
        print(plain(f"{options.out}: {of_all} done"))
        for photo, reason in failed[:FAILURES_SHOWN]:
            print(f"  {photo}: {reason}")
        if len(failed) > FAILURES_SHOWN:
            print(f"  ... and {len(failed) - FAILURES_SHOWN} more (--json lists all)")
    return int(bool(failed))


class _Download:
    """Draw the progress of a download on a terminal."""

    def __init__(self) -> None:
        self._drawn_at = time.monotonic()

    def __call__(self, there: int, total: int | None) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - self._drawn_at < REDRAW_S and there != total):
            return
        self._drawn_at = now
        whole = "?" if total is None else f"{total / 1e6:.1f}"
        end = "\n" if there == total else ""
        print(f"\r\x1b[K{there / 1e6:.1f}/{whole} MB", end=end, file=sys.stderr, flush=True)


def _check_out(path: Path) -> None:
    """Raise UsageError before any work if the file cannot be made."""
    if path.exists():
        raise UsageError(f"-o {path} exists: name another file, or remove it")


async def _cancel(client: AsyncClient, options: argparse.Namespace) -> int:
    """Remove jobs."""
    for name in options.id:
        await client.cancel_job(name)
    if options.json:
        print(json.dumps({"cancelled": options.id}))
    return 0


async def _list(client: AsyncClient, options: argparse.Namespace) -> int:
    """Print the jobs of the key."""
    jobs = await client.jobs()
    if options.json:
        print(json.dumps({"jobs": [asdict(job) for job in jobs]}))
        return 0
    for job in jobs:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created))
        failed = f"  {job.failed} failed" if job.failed else ""
        print(f"{job.id}  {job.state:7}  {since}  {job.done}/{job.photos}{failed}")
    return 0
