"""The batch command reports mistakes before it joins or uses a cluster."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`: pip install -e '.[ray]'")

from pyarrow import fs

from service.client import cli
from service.client.errors import UsageError
from service.client.progress import Counts, Progress
from service.client.records import REJECTED, Record
from service.cluster.pipeline import BatchJob
from service.cluster.storage import place
from service.errors import InvalidRequest, StartupError
from service.inference.engine import Engine, EngineOptions
from tests.service import onnx_models

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    from ray import cloudpickle

    from service.cluster import batch as ray_batch

pytestmark = pytest.mark.slow  # importing Ray alone takes a second


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return onnx_models.save(tmp_path / "tiny.onnx")


def test_a_model_is_the_same_on_an_actor_without_the_file(model: Path) -> None:
    there = Engine(model, EngineOptions(device="cpu"))
    sent = ray_batch.read_model(str(model))
    model.unlink()
    engine = sent.engine(EngineOptions(device="cpu", threads=1))
    assert (engine.name, engine.digest) == (there.name, there.digest)
    assert (sent.stem, sent.digest) == (there.name, there.digest)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"none\.onnx"):
        ray_batch.read_model(str(tmp_path / "none.onnx"))


def test_a_file_that_is_no_model_is_refused_before_the_cluster_is_used(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    bad = ray_batch.read_model(str(tmp_path / "bad.onnx"))
    with pytest.raises(StartupError, match=r"bad\.onnx"):
        ray_batch.check(bad, job_of(tmp_path))


def test_an_output_that_the_model_lacks_is_refused_before_the_cluster_is_used(
    model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="confidence"):
        ray_batch.check(ray_batch.read_model(str(model)), job_of(tmp_path, ("confidence",)))


def job_of(folder: Path, outputs: tuple[str, ...] = ("mask",)) -> BatchJob:
    return BatchJob(
        fs.LocalFileSystem(), place(str(folder)), outputs, 1, max_pixels=10**6, threads=1
    )


def test_every_flag_of_the_client_is_one_of_the_batch() -> None:
    """Except flags for the connection and the key, for --local, for videos, and for URLs."""
    client, batch = (
        {option for action in parser._actions for option in action.option_strings}
        for parser in (cli._parser(), ray_batch._parser())
    )
    connection = {"--concurrency", "--timeout", "--give-up-after", "--api-key"}
    assert client - batch == connection | {"--local", "--models", "--steady", "--urls"}
    arguments = [".", "-o", "out", "--fit", "sliding", "--classes", "a,b", "--alpha", "0"]
    options = ray_batch._options(ray_batch._parser().parse_args(arguments))
    assert options.query == "fit=sliding&classes=a%2Cb&alpha=0.0"


def test_dry_run_names_what_would_be_done_and_touches_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.jpg", "a.png", "c.gif"):
        (tmp_path / "in" / name).write_bytes(b"x")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "in"), "-o", str(out), "--model", str(model), "--dry-run"]
    assert ray_batch.main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["a.png", "b.jpg"]
    assert "2 to send, 0 complete already, 0 rejected before" in said.err
    assert "1 .gif" in said.err
    assert not out.exists()


SEALED = """
import os, sys
from ray import cloudpickle
sealed = cloudpickle.loads(sys.stdin.buffer.read())
assert "secret" not in repr(sealed)
job = sealed.opened()
names = ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AZURE_CLIENT_ID", "HOME_OF_MINE")
print(job.outputs, [os.environ.get(name) for name in names])
"""


def test_credentials_of_the_driver_reach_the_actors_in_place_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are replaced together: a node's session token does not fit the driver's key."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "drivers")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HOME_OF_MINE", "no matter of theirs")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    sent = cloudpickle.dumps(ray_batch.Sealed.of(job_of(tmp_path)))  # type: ignore[no-untyped-call]
    own = {"AWS_ACCESS_KEY_ID": "nodes", "AWS_SESSION_TOKEN": "nodes", "AWS_PROFILE": "nodes"}
    theirs = {"PATH": os.environ["PATH"], "AZURE_CLIENT_ID": "nodes", **own}
    command = [sys.executable, "-W", "ignore", "-c", SEALED]
    done = subprocess.run(command, input=sent, env=theirs, capture_output=True, check=True)
    assert done.stdout.decode() == "('mask',) ['drivers', None, 'nodes', 'nodes', None]\n"


def test_inputs_without_a_photo_are_a_usage_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IMG_1.GIF").write_bytes(b"x")
    options = ray_batch.RayBatchOptions([str(tmp_path / "in")], str(tmp_path / "out"), str(model))
    with pytest.raises(UsageError, match=r"no photo found in .*; 1 file left out: 1 \.gif"):
        ray_batch.RayBatch(options, Progress(Counts(), io.StringIO())).work()


def test_mistakes_are_told_before_a_cluster_is_joined(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no cluster at this address."""
    missing, out = str(tmp_path / "missing"), str(tmp_path / "out")
    nowhere = ["--address", "127.0.0.1:1"]
    assert ray_batch.main([missing, "-o", out, "--model", str(model), *nowhere]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert ray_batch.main([str(tmp_path), "-o", out, "--model", missing, *nowhere]) == 1
    assert "cannot read the model" in capsys.readouterr().err


def test_no_cluster_is_joined_if_nothing_is_to_do(model: Path, tmp_path: Path) -> None:
    """The only photo was rejected in an earlier run."""
    (tmp_path / "in").mkdir()
    photo = tmp_path / "in" / "a.jpg"
    photo.write_bytes(b"broken")
    file = ray_batch.read_model(str(model))
    record = Record(
        name="a.jpg",
        source=str(photo),
        stem="a",
        size=photo.stat().st_size,
        mtime_ns=photo.stat().st_mtime_ns,
        sha256=None,
        model=file.stem,
        model_digest=file.digest,
        status=REJECTED,
        error="broken",
    )
    (tmp_path / "out" / "manifest").mkdir(parents=True)
    (tmp_path / "out" / "manifest" / "0.jsonl").write_text(record.json() + "\n")
    options = ray_batch.RayBatchOptions([str(tmp_path / "in")], str(tmp_path / "out"), str(model))

    def connect() -> None:
        raise AssertionError("a cluster was joined")

    run = ray_batch.RayBatch(options, Progress(Counts(), io.StringIO()))
    summary = run.work(connect)
    assert summary.counts.rejected == 1
    photo.write_bytes(b"another photo")
    with pytest.raises(AssertionError, match="joined"):
        ray_batch.RayBatch(options, Progress(Counts(), io.StringIO())).work(connect)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--output", "masks"], "output='masks'"),
        (["--actors", "0"], "must be at least 1"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_a_wrong_option_is_a_usage_error(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = ray_batch.main([".", "-o", "out", *flags])
    except SystemExit as stop:  # argparse exits by itself
        code = stop.code
    assert code == 2
    assert says in capsys.readouterr().err
