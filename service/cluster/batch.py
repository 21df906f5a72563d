"""`python -m service.ray_batch INPUTS... -o OUT --model F.onnx`: segment photos on a Ray cluster.

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
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import ray
from pyarrow import fs
from ray import cloudpickle
from ray.data import DataContext

from service.client import flags
from service.client.errors import ClientError, UsageError
from service.client.flags import positive
from service.client.inputs import Others, nothing_found
from service.client.plain import counted, plain
from service.client.plan import Wanted, tally_text
from service.client.progress import Counts, Progress
from service.client.protocol import parse_outputs
from service.client.records import DONE, FAILED, REJECTED, Collected, Record, totals
from service.client.report import write_report
from service.client.summary import Summary
from service.cluster import pipeline
from service.cluster.pipeline import BatchJob, OutputError, Pipeline
from service.cluster.records import Parts, Plan, Todo, load
from service.cluster.storage import Place, StoredPhoto, photos, place
from service.errors import ServiceError, StartupError
from service.inference.engine import Device, Engine, EngineOptions
from service.settings import BUNDLED, Settings

EXAMPLES = """\
examples:
  python -m service.ray_batch photos/ -o out/
  python -m service.ray_batch s3://bucket/photos -o s3://bucket/masks --output mask --model F.onnx
  python -m service.ray_batch gs://bucket/photos -o gs://bucket/masks --gpus-per-actor 1 \\
      --cpus-per-actor 12 --max-batch 16 --address head:6379

Run the same command again to continue after an interruption: complete photos are
skipped; changed photos and photos of another model are done again. See docs/scale.md.
Exit code: 0 every photo has a result, 1 some have none, 2 wrong usage.
"""
# Variables with addresses and credentials of stores. Variables that name files or profiles are not
# included: the files would have to exist on every node.
CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    "AWS_EC2_METADATA_DISABLED",
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_TENANT_ID", "AZURE_CLIENT_ID"),
    "AZURE_CLIENT_SECRET",
)
PHOTOS_PER_BLOCK = 32  # a block is started again when its actor is lost


@dataclass(frozen=True)
class RayBatchOptions:
    """The options of the command."""

    inputs: list[str]
    out: str
    model: str
    outputs: tuple[str, ...] = ("mask", "overlay")
    base: Path | None = None
    device: Device = "auto"
    actors: int | None = None  # at most; None: as many as fit into the cluster
    cpus_per_actor: int = 1
    gpus_per_actor: float = 0
    max_batch: int = 0  # 4 on a GPU, 1 on a CPU
    block: int = PHOTOS_PER_BLOCK
    max_pixels: int = 50_000_000
    max_windows: int = Settings.model_fields["max_windows"].default
    max_side: int | None = None
    query: str = ""  # of a request to the service, without output and model
    report: bool = False
    retry_rejected: bool = False
    max_failures: int | None = None


@dataclass(frozen=True)
class ModelFile:
    """An .onnx file that is sent to the actors, whose nodes need not have it."""

    name: str
    data: bytes = field(repr=False)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def engine(self, options: EngineOptions) -> Engine:
        """Load the model; raises StartupError."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.name
            path.write_bytes(self.data)
            return Engine(path, options)


@dataclass(frozen=True)
class Sealed:
    """A serialised job with the driver's credentials for its stores.

    An actor sets the credentials before it creates the job's file systems, which read them.
    Ray's `runtime_env` is not used, because every user of the cluster can see it.
    """

    environment: dict[str, str] = field(repr=False)
    content: bytes = field(repr=False)

    @classmethod
    def of(cls, job: BatchJob) -> Sealed:
        """Serialise a job with those of CREDENTIALS that are set here."""
        given = {name: os.environ[name] for name in CREDENTIALS if os.environ.get(name)}
        return cls(given, cloudpickle.dumps(job))  # type: ignore[no-untyped-call]

    def opened(self) -> BatchJob:
        """Return the job; the driver's variables replace those of the node for the same store."""
        for store in {name.partition("_")[0] for name in self.environment}:
            for name in CREDENTIALS:
                if name.startswith(f"{store}_"):
                    os.environ.pop(name, None)
        os.environ.update(self.environment)
        job: BatchJob = cloudpickle.loads(self.content)
        return job


class Actor:
    """An engine of the pool, which Ray Data calls."""

    def __init__(
        self, model: ray.ObjectRef[ModelFile], options: EngineOptions, job: Sealed
    ) -> None:
        found: ModelFile = ray.get(model)
        self._pipeline = Pipeline(lambda: found.engine(options), job.opened())

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Return a record for each todo, and the reason if the whole run must stop."""
        records: list[str] = []
        stop = ""
        try:
            for record in self._pipeline.run(map(Todo.parse, block["todo"])):
                records.append(record.json())  # noqa: PERF401 - keep the records before an error
        except (
            OutputError
        ) as error:  # returned as a value: Ray's wrappers of exceptions lose the reason
            stop = str(error)
        return {"record": [*records, ""], "stop": [*[""] * len(records), stop]}


@dataclass(frozen=True)
class Found:
    """The model, the job and the photos of a run."""

    model: ModelFile
    classes: tuple[str, ...]  # of the model, by id
    job: BatchJob
    todos: list[Todo]


class RayBatch:
    """A run of the command; call `work` once."""

    def __init__(self, options: RayBatchOptions, progress: Progress) -> None:
        self.options = options
        self.progress = progress
        self.counts = progress.counts
        self.others = Others()
        self.records: dict[str, Record] = {}  # of this run and earlier ones
        self._failures: list[tuple[str, str, str]] = []
        self._rejected_before = 0

    def work(self, connect: Callable[[], None] = lambda: None) -> Summary:
        """Run everything; raises ClientError, StartupError or ServiceError.

        `connect` joins the cluster. It is called only if there are photos to process: to start a
        cluster takes some twenty seconds.
        """
        began = time.monotonic()
        found = self._look()
        if found.todos:
            connect()
        parts = Parts(found.job.out)
        parts.put_classes(found.classes)
        stopped = self._settle(found, parts) if found.todos else None
        self.progress.close()
        if self.options.report:
            self._report(found)
        return self._summary(time.monotonic() - began, found.model, stopped)

    def tally(self) -> tuple[list[str], dict[str, int]]:
        """Return the photos that `work` would process, and the counts of the others."""
        names = [todo.photo.name for todo in self._look(sweeps=False).todos]
        done, rejected = self.counts.skipped, self.counts.rejected
        return names, {"send": len(names), "skip": done, "rejected": rejected}

    def _look(self, *, sweeps: bool = True) -> Found:
        """Load the model, list the photos and OUT, and read the earlier records."""
        options = self.options
        model = read_model(options.model)
        out = place(options.out)
        source, found = photos(options.inputs, out, options.base, self.others)
        job = self._job(source, out)
        classes = check(model, job)
        files = list(out.files())
        if sweeps:
            out.sweep([file.path for file in files])
        self.records = load(out, files).found
        plan = Plan(self._wanted(model), self.records, {file.path: file.size for file in files})
        todos = list(self._todos(plan, found))
        if not self.progress.total:
            raise nothing_found(options.inputs, self.others)
        return Found(model, classes, job, todos)

    def _job(self, source: fs.FileSystem, out: Place) -> BatchJob:
        options = self.options
        return BatchJob(
            source,
            out,
            options.outputs,
            options.max_batch,
            options.max_pixels,
            threads=options.cpus_per_actor + 1,  # one more, because some wait for the store
            max_side=options.max_side,
            options=options.query,
            counts=options.report,
            max_windows=options.max_windows,
        )

    def _wanted(self, model: ModelFile) -> Wanted:
        options = self.options
        return Wanted(
            options.outputs,
            model.stem,
            model.digest,
            options.max_side,
            options.query,
            pixels=options.report,
            retry_rejected=options.retry_rejected,
        )

    def _report(self, found: Found) -> None:
        """Write the client's tables and contact sheets to OUT."""
        out, results = found.job.out, Collected(self.records, dict(enumerate(found.classes)))
        with tempfile.TemporaryDirectory() as folder:
            written, missing = write_report(Path(folder), results, out.read)
            for path in written:
                out.write(path.name, path.read_bytes())
                self.progress.note(f"{self.options.out.partition('?')[0]}/{path.name}")
        for reason in missing:
            self.progress.note(reason)

    def _summary(self, seconds: float, model: ModelFile, stopped: str | None) -> Summary:
        failures = tuple(sorted(self._failures))
        classes = tuple(totals(self.records.values()))
        told = (self.counts, seconds, model.stem, model.digest, failures, classes)
        return Summary(*told, stopped, self.others)

    def _todos(self, plan: Plan, found: Iterable[StoredPhoto]) -> Iterator[Todo]:
        """Yield the photos to process; count the others."""
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

    def _settle(self, found: Found, parts: Parts) -> str | None:
        """Collect the record of every photo; return the reason of an early end, or None."""
        pending = {todo.photo.name: todo for todo in found.todos}
        try:
            for record in segmented(found.todos, found.job, found.model, self.options):
                todo = pending.pop(record.name, None)
                if todo is None:  # from a block that was started again
                    continue
                parts.add(record)
                self.records[record.name] = record
                stood = todo.unchanged_if is not None and record.sha256 == todo.unchanged_if
                self._count(record, is_new=not stood)
                self.progress.update()
                failures = len(self._failures) - self._rejected_before
                if failures >= (self.options.max_failures or math.inf):
                    return f"stopped after {counted(failures, 'failure')}"
        except (ray.exceptions.RayError, OutputError) as error:
            return _reason(error)
        finally:
            parts.close()
        return f"came back without a record: {counted(len(pending), 'photo')}" if pending else None

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


def segmented(
    todos: list[Todo], job: BatchJob, model: ModelFile, options: RayBatchOptions
) -> Iterator[Record]:
    """Yield the records of all photos as actors finish them; raises OutputError to stop the run."""
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
        fn_constructor_args=(ray.put(model), engine, Sealed.of(job)),
        num_cpus=options.cpus_per_actor,
        num_gpus=options.gpus_per_actor,
        compute=ray.data.ActorPoolStrategy(
            # From 1: the pool may shrink with the cluster, and lost actors are replaced.
            min_size=1,
            max_size=actors,
            initial_size=actors,
        ),
    )
    for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
        yield from (Record.parse(text) for text in batch["record"] if text)
        for reason in filter(None, batch["stop"]):
            raise OutputError(reason)


def room(options: RayBatchOptions) -> int:
    """Return how many actors fit into the cluster now; raises StartupError if none do."""
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


def read_model(where: str) -> ModelFile:
    """Read the model file from a disk or an object store; raises StartupError."""
    whole = place(where)
    path = PurePosixPath(whole.root)
    try:
        return ModelFile(path.name, replace(whole, root=str(path.parent)).read(path.name))
    except OSError as error:
        raise StartupError(f"cannot read the model {where}: {error}") from None


def check(model: ModelFile, job: BatchJob) -> tuple[str, ...]:
    """Check model and options here, before the cluster is used; return the class names by id.

    Raises StartupError or InvalidRequest.
    """
    contract = model.engine(EngineOptions(device="cpu", threads=1)).contract
    pipeline.wish(job, contract)
    return contract.classes


def _reason(error: BaseException) -> str:
    """Return the original cause in a chain of Ray's exceptions."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    return str(error) or type(error).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        options = _options(arguments)
        if arguments.dry_run:
            return dry_run(options, as_json=arguments.json)
        run = RayBatch(options, Progress(Counts(), sys.stderr))
        summary = run.work(partial(connect, arguments.address))
    except (UsageError, ServiceError) as error:
        print(plain(f"ray_batch: {error}"), file=sys.stderr)
        return 2
    except (ClientError, StartupError, OSError) as error:
        print(plain(f"ray_batch: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return 130
    print(json.dumps(summary.json(), indent=2) if arguments.json else summary.text())
    return summary.exit_code()


def dry_run(options: RayBatchOptions, *, as_json: bool) -> int:
    """Print the names of the photos to process, then the counts; needs no cluster."""
    run = RayBatch(options, Progress(Counts(), sys.stderr))
    names, tally = run.tally()
    if as_json:
        print(json.dumps(tally))
        return 0
    for name in names:
        print(plain(name))
    print(tally_text(tally), file=sys.stderr)
    if run.others.counts:
        print(plain(run.others.text()), file=sys.stderr)
    return 0


def connect(address: str | None) -> None:
    """Join the cluster at `address`, at RAY_ADDRESS or on this machine; if none runs, start one."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
        # Its warnings are about its own defaults: tokens, and the progress bars turned off here.
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _options(arguments: argparse.Namespace) -> RayBatchOptions:
    fields = {f.name for f in dataclasses.fields(RayBatchOptions)}
    given = {key: value for key, value in vars(arguments).items() if key in fields}
    given["outputs"] = parse_outputs(arguments.output)
    given["query"] = flags.query(arguments)
    given["retry_rejected"] = arguments.retry_failed
    given["max_failures"] = flags.most_failures(arguments)
    return RayBatchOptions(**given)


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
    add(
        "--model",
        metavar="FILE",
        default=str(bundled),
        help="path or URI of the model (default: the bundled one)",
    )
    flags.add_version(parser)
    flags.add_results(parser)
    flags.add_query(parser)
    flags.add_limits(parser)
    _add_cluster(parser)
    return parser


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the cluster and its actors; an actor is a process with an engine."""
    add = parser.add_argument_group("cluster").add_argument
    address = "address of the Ray cluster (default: RAY_ADDRESS, else a cluster on this machine)"
    add("--address", help=address)
    devices = ["auto", "cpu", "cuda"]
    where = "where actors run the model, as for the service (default: %(default)s)"
    add("--device", choices=devices, default="auto", help=where)
    actors = "most actors (default: as many as the cluster has room for)"
    add("--actors", metavar="N", type=positive, help=actors)
    cpus = "CPUs of each actor (default: %(default)s)"
    add("--cpus-per-actor", metavar="N", type=positive, default=1, help=cpus)
    gpus = "GPUs of each actor: give 1 on hosts with GPUs (default: %(default)s)"
    add("--gpus-per-actor", metavar="N", type=float, default=0, help=gpus)
    batch = "most photos in one run of the engine (default: 4 on a GPU, 1 on a CPU)"
    add("--max-batch", metavar="N", type=positive, default=0, help=batch)
    block = "photos of one task; if it fails they are done again together (default: %(default)s)"
    add("--block", metavar="N", type=positive, default=PHOTOS_PER_BLOCK, help=block)
    pixels = "most pixels of one photo; larger ones are rejected (default: %(default)s)"
    add("--max-pixels", metavar="N", type=positive, default=50_000_000, help=pixels)
    most = "most sliding windows of one photo (default: %(default)s)"
    windows = Settings.model_fields["max_windows"].default
    add("--max-windows", metavar="N", type=positive, default=windows, help=most)
