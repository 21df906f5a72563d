"""A client that openapi-python-client generates from the schema, against the service."""

from __future__ import annotations

import base64
import importlib
import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import opened, photo, png

pytestmark = pytest.mark.slow

NAME = "generated_deeplab"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    (folder / "inputs").mkdir()
    (folder / "inputs" / "cat.png").write_bytes(png(photo()))
    jobs = ("--jobs", str(folder / "jobs"), "--job-inputs", str(folder / "inputs"))
    with running(folder, "--max-body-bytes", "100000", *jobs) as (url, _):
        yield url


@pytest.fixture(scope="module")
def package(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The generated package, to be imported."""
    folder = tmp_path_factory.mktemp("generated")
    command = [str(Path(sys.executable).with_name("openapi-python-client")), "generate"]
    command += ["--url", f"{address}/openapi.json", "--meta", "none"]
    command += ["--output-path", str(folder / NAME)]
    (folder / "config.yaml").write_text("post_hooks: []\n")
    command += ["--config", str(folder / "config.yaml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "parse response" not in done.stdout.lower()
    sys.path.insert(0, str(folder))
    yield NAME
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.startswith(NAME)]:
        del sys.modules[name]


def operation(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"{package}.api.default.{name}")


def types(package: str) -> Any:
    return importlib.import_module(f"{package}.types")


def models(package: str) -> Any:
    return importlib.import_module(f"{package}.models")


@pytest.fixture
def client(package: str, address: str) -> Iterator[Any]:
    """The generated client; its connections are closed at the end."""
    with importlib.import_module(f"{package}.client").Client(base_url=address) as client:
        yield client


def segment(package: str, client: Any, data: bytes, **query: Any) -> Any:
    file = types(package).File(payload=io.BytesIO(data))
    return operation(package, "post_segment").sync_detailed(client=client, body=file, **query)


def test_a_photo_gives_bytes_of_a_known_type(package: str, client: Any) -> None:
    answer = segment(package, client, png(photo()))
    assert answer.status_code == 200
    assert isinstance(answer.parsed, types(package).File)
    mask = opened(answer.parsed.payload.read())
    assert (mask == onnx_models.expected(photo())).all()


def test_the_json_answer_fits_its_named_type(package: str, client: Any) -> None:
    query = {"output": ["json"], "include": ["mask"]}
    answer = segment(package, client, png(photo()), **query)
    result = models(package).JsonResult.from_dict(json.loads(answer.content))
    assert (result.width, result.height) == (50, 40)
    assert {found.name for found in result.classes} == set(onnx_models.CLASSES)
    assert result.mask.media_type == "image/png"
    rle = segment(package, client, png(photo()), output=["rle"])
    runs = models(package).RleResult.from_dict(json.loads(rle.content)).classes[0].segmentation
    assert runs.size == [40, 50]
    polygons = segment(package, client, png(photo()), output=["polygons"])
    read = models(package).PolygonsResult.from_dict(json.loads(polygons.content))
    assert read.features[0].geometry.coordinates


@pytest.mark.parametrize(
    ("data", "query", "status", "code"),
    [
        (b"junk", {}, 400, "invalid-image"),
        (png(photo()), {"model": "none"}, 404, "unknown-model"),
        (bytes(200_000), {}, 413, "body-too-large"),
    ],
)
def test_every_error_is_the_same_type(
    package: str, client: Any, data: bytes, query: dict[str, Any], status: int, code: str
) -> None:
    """The generator drops all error types but the first if each response has its own definition."""
    answer = segment(package, client, data, **query)
    assert answer.status_code == status
    assert isinstance(answer.parsed, models(package).Problem)
    assert (answer.parsed.code, answer.parsed.status) == (code, status)


def test_models_are_typed(package: str, client: Any) -> None:
    listed = operation(package, "list_models").sync(client=client)
    assert isinstance(listed, models(package).ModelList)
    (model,) = listed.models
    assert (model.name, model.default, model.input_.width) == ("tiny", True, 64)
    asked = operation(package, "reload_model").sync
    assert asked("tiny", client=client).changed is False


def test_every_good_answer_has_a_type(address: str) -> None:
    """Without a schema a generated client returns None for an answer of 200."""
    paths = httpx.get(f"{address}/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            good = [each for status, each in operation["responses"].items() if status[0] == "2"]
            for kind, content in (
                pair for each in good for pair in each.get("content", {}).items()
            ):
                assert content.get("schema"), (path, kind)


def test_tensors_are_typed(package: str, client: Any) -> None:
    image = photo(48, 64)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *image.shape]}
    request = {"id": "7", "inputs": [tensor | {"data": image.ravel().tolist()}]}
    body = models(package).InferRequest.from_dict(request)
    answer = operation(package, "infer").sync("tiny", client=client, body=body)
    assert isinstance(answer, models(package).InferAnswer)
    found = {output.name: output for output in answer.outputs}["labels"]
    labels = np.array(found.data).reshape(found.shape)
    assert (answer.id, answer.model_name) == ("7", "tiny")
    assert (labels[0] == onnx_models.expected(image)).all()
    about = operation(package, "model_metadata").sync("tiny", client=client)
    assert [(each.name, each.shape) for each in about.inputs] == [("image", [-1, 48, 64, 3])]
    assert operation(package, "model_ready").sync("tiny", client=client).ready is True
    assert "# HELP" in operation(package, "get_metrics").sync(client=client)


def test_json_with_a_photo_is_typed(package: str, client: Any) -> None:
    body = models(package).SegmentRequest(image=base64.b64encode(png(photo())).decode())
    answer = operation(package, "post_segment").sync(client=client, body=body, output=["mask"])
    assert isinstance(answer, types(package).File), answer
    assert (opened(answer.payload.read()) == onnx_models.expected(photo())).all()


def test_jobs_are_typed(package: str, client: Any) -> None:
    body = models(package).JobRequest(paths=["cat.png"])
    job = operation(package, "post_job").sync(client=client, body=body)
    assert isinstance(job, models(package).JobStatus)
    until = time.monotonic() + 20
    while operation(package, "get_job").sync(job.id, client=client).state != "done":
        assert time.monotonic() < until
        time.sleep(0.05)
    result = operation(package, "get_job_result").sync(job.id, client=client)
    with zipfile.ZipFile(result.payload) as archive:
        assert archive.namelist() == ["results.json", "cat.mask.png"]
    assert operation(package, "delete_job").sync_detailed(job.id, client=client).status_code == 204
    assert operation(package, "list_jobs").sync(client=client).jobs == []


def test_problem_is_defined_once(address: str) -> None:
    schema = httpx.get(f"{address}/openapi.json").json()
    assert json.dumps(schema).count('"request_id"') == 2  # a property of Problem, and required
    assert {"JsonResult", "Problem", "InferRequest"} <= schema["components"]["schemas"].keys()
