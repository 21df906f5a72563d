"""`python -m service.ray_batch INPUTS... -o OUT --model F.onnx`: photos through a Ray cluster.

Ray Data hands out blocks of photos to a pool of actors and starts a block again
when its actor or its node is lost. Each actor is one engine with its own threads,
one per GPU or per so many cores; photos go from their store to an actor and results
from there to OUT, so nothing but names and records passes through the cluster. The
driver alone writes the manifest.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext

from service.client.errors import ClientError, UsageError
from service.client.inputs import Others, nothing_found
from service.client.manifest import DONE, FAILED, REJECTED
from service.client.plain import plain
from service.client.plan import Wanted
from service.client.progress import Counts, Progress
from service.client.protocol import parse_outputs
from service.client.summary import Summary
from service.cluster import pipeline
from service.cluster.pipeline import Job, OutputError, Pipeline
from service.cluster.records import Parts, Plan, Record, Todo, load
from service.cluster.storage import Photo, Place, photos, place
from service.errors import ServiceError, StartupError
from service.inference.engine import Device, Engine, EngineOptions
from service.settings import BUNDLED

EXAMPLES = """\
examples:
  python -m service.ray_batch photos/ -o out/
  python -m service.ray_batch s3://bucket/photos -o s3://bucket/masks --output mask --model F.onnx
  python -m service.ray_batch gs://bucket/photos -o gs://bucket/masks --gpus-per-actor 1 \\
      --cpus-per-actor 12 --max-batch 16 --address head:6379

Run the same command again to go on after an interruption: what is complete is
skipped, changed photos and photos of another model are done again. docs/scale.md
tells the rest. Exit code: 0 every photo has its result, 1 some have none, 2 usage.
"""
PHOTOS_PER_BLOCK = 32  # what is started again when an actor is lost


@dataclass(frozen=True)
class Options:
    """The command line."""

    inputs: list[str]
    out: str
    model: str
    outputs: tuple[str, ...] = ("mask", "overlay")
    base: Path | None = None
    device: Device = "auto"
    actors: int | None = None  # at most; None: as many as the cluster has room for
    cpus_per_actor: int = 1
    gpus_per_actor: float = 0
    max_batch: int = 0  # 4 on a GPU, 1 on a CPU
    block: int = PHOTOS_PER_BLOCK
    max_pixels: int = 50_000_000
    retry_rejected: bool = False
    max_failures: int | None = None


@dataclass(frozen=True)
class Model:
    """An .onnx file on its way to the actors, whose nodes need not have it."""

    name: str
    data: bytes = field(repr=False)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def engine(self, options: EngineOptions) -> Engine:
        """Load it; raises StartupError."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.name
            path.write_bytes(self.data)
            return Engine(path, options)


class Actor:
    """One engine of the pool, as Ray Data calls it."""

    def __init__(self, model: ray.ObjectRef[Model], options: EngineOptions, job: Job) -> None:
        found: Model = ray.get(model)
        self._pipeline = Pipeline(lambda: found.engine(options), job)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """A record for each todo; at the end, perhaps, why the whole run must stop."""
        records: list[str] = []
        stop = ""
        try:
            for record in self._pipeline.run(map(Todo.parse, block["todo"])):
                records.append(record.json())  # noqa: PERF401 - those before an error count
        except OutputError as error:  # as a value: Ray's wrappers of exceptions lose the reason
            stop = str(error)
        return {"record": [*records, ""], "stop": [*[""] * len(records), stop]}


class Run:
    """One run of the command: `work` once."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self.options = options
        self.progress = progress
        self.counts = progress.counts
        self.others = Others()
        self._failures: list[tuple[str, str, str]] = []
        self._rejected_before = 0

    def work(self) -> Summary:
        """From the listing to the summary; raises ClientError, StartupError or ServiceError."""
        began, options = time.monotonic(), self.options
        model = read_model(options.model)
        check_outputs(model, options.outputs)
        out = place(options.out)
        source, found = photos(options.inputs, out, options.base, self.others)
        todos = list(self._todos(self._plan(out, model), found))
        if not self.progress.total:
            raise nothing_found(options.inputs, self.others)
        job = Job(
            source,
            out,
            options.outputs,
            options.max_batch,
            options.max_pixels,
            threads=options.cpus_per_actor + 1,  # one more, as some of them wait for the store
        )
        stopped = self._settle(todos, Parts(out), job, model) if todos else None
        self.progress.close()
        seconds, rows = time.monotonic() - began, tuple(sorted(self._failures))
        name, digest = model.stem, model.digest
        return Summary(self.counts, seconds, name, digest, rows, (), stopped, self.others)

    def _plan(self, out: Place, model: Model) -> Plan:
        """What is done already: one listing of OUT, and the records in it."""
        files = list(out.files())
        out.sweep([file.path for file in files])
        wanted = Wanted(
            self.options.outputs,
            model.stem,
            model.digest,
            retry_rejected=self.options.retry_rejected,
        )
        return Plan(wanted, load(out, files), {file.path: file.size for file in files})

    def _todos(self, plan: Plan, found: Iterable[Photo]) -> Iterator[Todo]:
        """The photos to work on; counts the others."""
        seen: dict[str, str] = {}
        for photo in found:
            if photo.name in seen:
                if seen[photo.name] != photo.source:
                    raise UsageError(f"two photos are named {photo.name}: set --base")
                continue
            seen[photo.name] = photo.source
            todo = plan.todo(photo)
            if isinstance(todo, Todo):
                yield todo
            else:
                self._count(todo, is_new=False)
        self.progress.total = len(seen)

    def _settle(self, todos: list[Todo], parts: Parts, job: Job, model: Model) -> str | None:
        """Every photo to its record; why it ended early, or None."""
        pending = {todo.photo.name: todo for todo in todos}
        try:
            for record in segmented(todos, job, model, self.options):
                todo = pending.pop(record.name, None)
                if todo is None:  # of a block that was started again: once is enough
                    continue
                parts.add(record)
                stood = todo.unchanged_if is not None and record.sha256 == todo.unchanged_if
                self._count(record, is_new=not stood)
                if self._is_too_much():
                    return f"stopped after {self.options.max_failures} failures"
        except (ray.exceptions.RayError, OutputError) as error:
            return _reason(error)
        finally:
            parts.close()
        return f"{len(pending)} photos came back without a record" if pending else None

    def _count(self, record: Record, *, is_new: bool) -> None:
        if record.status == DONE:
            self.counts.sent += is_new
            self.counts.skipped += not is_new
            return
        self.counts.rejected += record.status == REJECTED
        self.counts.failed += record.status == FAILED
        self._failures.append((record.name, record.status, record.error or ""))
        if is_new:
            self.progress.note(f"{record.name}: {record.error}")
        else:
            self._rejected_before += 1

    def _is_too_much(self) -> bool:
        self.progress.update()
        limit = self.options.max_failures
        return limit is not None and len(self._failures) - self._rejected_before >= limit


def segmented(todos: list[Todo], job: Job, model: Model, options: Options) -> Iterator[Record]:
    """The records of all photos, as actors finish them; raises OutputError to stop the run."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    blocks = [
        pa.table({"todo": [todo.json() for todo in block]})
        for block in pipeline.batches(todos, options.block)
    ]
    engine = EngineOptions(device=options.device, threads=options.cpus_per_actor)
    actors = min(len(blocks), options.actors or room(options))
    done = ray.data.from_arrow(blocks).map_batches(
        Actor,
        batch_size=None,  # a block is a task
        fn_constructor_args=(ray.put(model), engine, job),
        num_cpus=options.cpus_per_actor,
        num_gpus=options.gpus_per_actor,
        compute=ray.data.ActorPoolStrategy(
            # From 1: on what is left of a cluster the pool shrinks, and lost actors come back.
            min_size=1,
            max_size=actors,
            initial_size=actors,
        ),
    )
    for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
        yield from (Record.parse(text) for text in batch["record"] if text)
        for reason in filter(None, batch["stop"]):
            raise OutputError(reason)


def room(options: Options) -> int:
    """How many actors the cluster holds now; raises StartupError if it is none."""
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    needs = {"CPU": options.cpus_per_actor, "GPU": options.gpus_per_actor}
    held = min(has.get(kind, 0) // each for kind, each in needs.items() if each)
    if held < 1:
        there = {kind: has.get(kind, 0) for kind in needs}
        raise StartupError(
            f"no node has room for an actor of {needs}, the cluster has {there}: ask for less, "
            "or set --actors if it grows by itself"
        )
    return int(held)


def read_model(where: str) -> Model:
    """The model's file, from a disk or an object store; raises StartupError."""
    whole = place(where)
    path = PurePosixPath(whole.root)
    try:
        return Model(path.name, replace(whole, root=str(path.parent)).read(path.name))
    except OSError as error:
        raise StartupError(f"cannot read the model {where}: {error}") from None


def check_outputs(model: Model, outputs: tuple[str, ...]) -> None:
    """Fail here, not on the cluster; raises StartupError or InvalidRequest."""
    engine = model.engine(EngineOptions(device="cpu", threads=1))
    pipeline.wish(outputs, engine.contract)


def _reason(error: BaseException) -> str:
    """The last cause in a chain of Ray's wrappers."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    return str(error) or type(error).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        options = _options(arguments)
        connect(arguments.address)
        summary = Run(options, Progress(Counts(), sys.stderr)).work()
    except (UsageError, ServiceError) as error:
        print(plain(f"ray_batch: {error}"), file=sys.stderr)
        return 2
    except (ClientError, StartupError, OSError) as error:
        print(plain(f"ray_batch: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print(json.dumps(summary.json(), indent=2) if arguments.json else summary.text())
    return summary.exit_code()


def connect(address: str | None) -> None:
    """Join the cluster: of `address`, of RAY_ADDRESS, one on this machine, or a new one here."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no word to anybody outside
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _options(arguments: argparse.Namespace) -> Options:
    fields = {f.name for f in dataclasses.fields(Options)}
    given = {key: value for key, value in vars(arguments).items() if key in fields}
    given["outputs"] = parse_outputs(arguments.output)
    if arguments.fail_fast:
        given["max_failures"] = 1
    return Options(**given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.ray_batch",
        description="Segment the photos of folders or object stores on a Ray cluster.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", metavar="INPUT", nargs="+", help="file, folder, glob or URI (s3://, gs://, ...)")
    add("-o", "--out", metavar="OUT", required=True, help="folder or URI for the results")
    bundled = next(iter(sorted(BUNDLED.glob("*.onnx"))), None)
    add("--model", metavar="FILE", default=str(bundled), help="path or URI (the bundled model)")
    add("--output", metavar="LIST", default="mask,overlay", help="kinds of results (%(default)s)")
    add("--base", metavar="DIR", type=Path, help="folder that OUT mirrors (the inputs' common one)")
    add("--retry-failed", dest="retry_rejected", action="store_true", help="also rejected photos")
    add("--fail-fast", action="store_true", help="stop at the first failure")
    add("--max-failures", metavar="N", type=_positive, help="stop after N failures")
    add("--json", action="store_true", help="print the summary as JSON")
    _add_cluster(parser)
    return parser


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("cluster").add_argument
    add("--address", help="of the Ray cluster (RAY_ADDRESS, else one on this machine)")
    devices = ["auto", "cpu", "cuda"]
    add("--device", choices=devices, default="auto", help="as for the service (%(default)s)")
    add("--actors", metavar="N", type=_positive, help="at most (as many as there is room for)")
    add("--cpus-per-actor", metavar="N", type=_positive, default=1, help="(%(default)s)")
    add("--gpus-per-actor", metavar="N", type=float, default=0, help="1 on GPU hosts (0)")
    batch = "photos in one run of the engine (4 on a GPU, 1 on a CPU)"
    add("--max-batch", metavar="N", type=_positive, default=0, help=batch)
    block = "photos of one task, done again together (%(default)s)"
    add("--block", metavar="N", type=_positive, default=PHOTOS_PER_BLOCK, help=block)
    add("--max-pixels", metavar="N", type=_positive, default=50_000_000, help="of one photo")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
