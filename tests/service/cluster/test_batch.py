"""The batch command without a cluster: what is wrong is said before one is joined or used."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`: pip install -e '.[ray]'")

from service.client.errors import UsageError
from service.client.progress import Counts, Progress
from service.errors import InvalidRequest, StartupError
from service.inference.engine import Engine, EngineOptions
from tests.service import onnx_models

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    from service.cluster import batch as ray_batch


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
        ray_batch.check_outputs(bad, ("mask",))


def test_an_output_that_the_model_lacks_is_refused_before_the_cluster_is_used(
    model: Path,
) -> None:
    with pytest.raises(InvalidRequest, match="confidence"):
        ray_batch.check_outputs(ray_batch.read_model(str(model)), ("confidence",))


def test_inputs_without_a_photo_are_a_usage_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IMG_1.HEIC").write_bytes(b"x")
    options = ray_batch.Options([str(tmp_path / "in")], str(tmp_path / "out"), str(model))
    with pytest.raises(UsageError, match=r"no photo found in .*; 1 file left out: 1 \.heic"):
        ray_batch.Run(options, Progress(Counts(), io.StringIO())).work()


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
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    assert code == 2
    assert says in capsys.readouterr().err
