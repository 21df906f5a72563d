"""The Open Inference Protocol, tested with NVIDIA's own client."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import photo

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = onnx_models.SIZE
IMAGES = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "plain.onnx")
    onnx_models.save(folder / "sure.onnx", confidence=True, on_request=True)
    with running(folder) as (url, _):
        yield url


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    client = triton.InferenceServerClient(address.removeprefix("http://"))
    yield client
    client.close()


def tensor(*, binary: bool) -> Any:
    given = triton.InferInput("image", list(IMAGES.shape), "UINT8")
    given.set_data_from_numpy(IMAGES, binary_data=binary)
    return given


def encoded(photos: list[bytes], *, binary: bool) -> Any:
    """Photos as Triton's clients send bytes; their JSON holds text alone, so base64."""
    texts = photos if binary else [base64.b64encode(each) for each in photos]
    given = triton.InferInput("image", [len(photos)], "BYTES")
    given.set_data_from_numpy(np.array(texts, np.object_), binary_data=binary)
    return given


def jpeg(seed: int, height: int = 100, width: int = 150, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(photo(height, width, seed)).save(out, "JPEG", quality=95, **options)
    return out.getvalue()


def label_map(address: str, data: bytes) -> Any:
    """The labels that /segment gives."""
    answer = httpx.post(
        f"{address}/segment",
        params={"output": "npz"},
        content=data,
        headers={"Content-Type": "image/jpeg"},
    )
    return np.load(io.BytesIO(answer.content))["labels"]


@pytest.mark.parametrize("binary", [True, False])
def test_encoded_photos_get_the_labels_of_segment_at_their_own_size(
    client: Any, address: str, binary: bool
) -> None:
    photos = [jpeg(seed) for seed in (1, 2)]
    answer = client.infer("sure", [encoded(photos, binary=binary)])
    labels = answer.as_numpy("labels")
    assert labels.shape == answer.as_numpy("confidence").shape == (2, 100, 150)
    for found, data in zip(labels, photos, strict=True):
        assert (found == label_map(address, data)).all()


def test_encoded_photos_are_turned_upright_and_may_have_a_column_of_their_own(
    client: Any, address: str
) -> None:
    """Some clients add a dimension for the batch."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(3, exif=exif)
    given = triton.InferInput("image", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[data]], np.object_))
    labels = client.infer("plain", [given]).as_numpy("labels")
    assert labels.shape == (1, 150, 100)
    assert (labels[0] == label_map(address, data)).all()


def test_a_long_photo_as_json_is_read_by_a_decoder(client: Any) -> None:
    data = jpeg(4, 400, 500, subsampling=0)
    assert len(data) > 64 * 1024
    wanted = [triton.InferRequestedOutput("labels", binary_data=True)]
    answer = client.infer("plain", [encoded([data], binary=False)], outputs=wanted)
    assert answer.as_numpy("labels").shape == (1, 400, 500)


@pytest.mark.parametrize(
    ("photos", "says"),
    [
        ([b"no photo"], "not an image"),
        ([b""], "empty"),
        ([jpeg(1), jpeg(1, 50, 50)], "different sizes"),
        ([jpeg(1)] * 17, "limit is 16"),
    ],
)
def test_photos_that_cannot_be_answered_together_are_refused(
    client: Any, photos: list[bytes], says: str
) -> None:
    with pytest.raises(InferenceServerException, match=says):
        client.infer("plain", [encoded(photos, binary=True)])


@pytest.mark.parametrize(
    ("changes", "tail", "says"),
    [
        ({"shape": [1, 2]}, b"", "[N] or [N, 1]"),
        ({"shape": [2000]}, b"", "at most 1024"),
        ({"data": ["QUJDR"]}, b"", "wrong length"),
        ({"data": ["é" * 4]}, b"", "not base64"),
        ({"data": [1]}, b"", "texts of base64"),
        ({"data": ["QUJD", "QUJD"]}, b"", "texts of base64"),
        ({"parameters": {"binary_data_size": 4}}, b"\x05\0\0\0", "cut off"),
        ({"parameters": {"binary_data_size": 2}}, b"\x05\0", "cut off"),
        ({"parameters": {"binary_data_size": 6}}, b"\x01\0\0\0xx", "1 bytes follow"),
        ({"parameters": {"binary_data_size": 9}}, b"\x01\0\0\0x", "5 bytes follow the JSON"),
    ],
)
def test_encoded_photos_that_do_not_fit_their_shape_are_refused(
    address: str, changes: dict[str, Any], tail: bytes, says: str
) -> None:
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [1], **changes}]
    text = json.dumps({"inputs": inputs}).encode()
    answer = httpx.post(
        f"{address}/v2/models/plain/infer",
        content=text + tail,
        headers={"Inference-Header-Content-Length": str(len(text))},
    )
    assert answer.status_code == 400
    assert says in answer.json()["error"]


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sure")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    about = client.get_model_metadata("sure")
    assert about["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, HEIGHT, WIDTH, 3]}
    ]
    assert [output["name"] for output in about["outputs"]] == ["labels", "confidence"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tensors_go_in_and_out_as_bytes_or_as_json(
    client: Any, binary_in: bool, binary_out: bool
) -> None:
    wanted = [
        triton.InferRequestedOutput(name, binary_data=binary_out)
        for name in ("labels", "confidence")
    ]
    answer = client.infer("sure", [tensor(binary=binary_in)], outputs=wanted, request_id="mine")
    assert (answer.as_numpy("labels") == onnx_models.expected(IMAGES)).all()
    assert (answer.as_numpy("confidence") == IMAGES[..., 0]).all()
    assert answer.get_response()["id"] == "mine"
    assert answer.get_response()["model_name"] == "sure"


def test_a_model_has_one_version_that_may_be_named(client: Any) -> None:
    (version,) = client.get_model_metadata("plain")["versions"]
    assert client.is_model_ready("plain", version)
    assert client.get_model_metadata("plain", version) == client.get_model_metadata("plain")
    answer = client.infer("plain", [tensor(binary=True)], model_version=version)
    assert answer.get_response()["model_version"] == version
    assert not client.is_model_ready("plain", "2")
    with pytest.raises(InferenceServerException, match="does not exist"):
        client.infer("plain", [tensor(binary=True)], model_version="2")


def test_all_outputs_are_returned_if_none_is_named(client: Any) -> None:
    answer = client.infer("plain", [tensor(binary=True)])
    assert (answer.as_numpy("labels") == onnx_models.expected(IMAGES)).all()
    assert answer.as_numpy("confidence") is None


def test_errors_have_the_form_that_the_client_expects(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="the models are: plain, sure"):
        client.infer("none", [tensor(binary=True)])
    with pytest.raises(InferenceServerException, match="this model has"):
        client.infer(
            "plain", [tensor(binary=True)], outputs=[triton.InferRequestedOutput("confidence")]
        )


def image(**changes: Any) -> dict[str, Any]:
    return {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, HEIGHT, WIDTH, 3],
        "data": IMAGES[0].ravel().tolist(),
    } | changes


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "inputs"),
        ([image(), image()], "inputs"),
        ([image(name="input")], "image"),
        ([image(datatype="FP32")], "UINT8"),
        ([image(shape=[1, 2, 2, 3])], f"[N, {HEIGHT}, {WIDTH}, 3]"),
        ([image(shape=[2, HEIGHT, WIDTH, 3])], "integers from 0 to 255"),
        ([image(shape=[0, HEIGHT, WIDTH, 3])], "greater than or equal to 1"),
        ([image(data=[256] * HEIGHT * WIDTH * 3)], "outside 0 to 255"),
        ([image(data=[0.5] * HEIGHT * WIDTH * 3)], "float64"),
        ([image(data=[10**30] * HEIGHT * WIDTH * 3)], "integers from 0 to 255"),
        ([image(data=[[1], [2, 3]])], "integers from 0 to 255"),
        ([image(data=None)], "has no data"),
        ([image(data=None, parameters={"binary_data_size": 5})], "binary_data_size 5"),
    ],
)
def test_a_request_that_is_wrong_says_where(
    address: str, inputs: list[dict[str, Any]], says: str
) -> None:
    answer = httpx.post(f"{address}/v2/models/plain/infer", json={"inputs": inputs})
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert answer.json()["error"] == answer.json()["detail"]


@pytest.mark.parametrize("length", ["-1", "many", "1e3", "99999999", "9" * 30])
def test_an_impossible_header_length_is_refused(address: str, length: str) -> None:
    answer = httpx.post(
        f"{address}/v2/models/plain/infer",
        content=json.dumps({"inputs": [image()]}),
        headers={"Inference-Header-Content-Length": length},
    )
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length" in answer.json()["error"]


def test_extensions_that_are_not_offered_are_named(client: Any, address: str) -> None:
    """`stats` is not the name of a model in `/v2/models/stats`."""
    for name, version in (("", ""), ("plain", ""), ("plain", "1")):
        with pytest.raises(InferenceServerException, match="'statistics' is not offered"):
            client.get_inference_statistics(name, version)
    with pytest.raises(InferenceServerException, match="'model configuration' is not offered"):
        client.get_model_config("plain")
    with pytest.raises(InferenceServerException, match="no model 'none'"):
        client.get_model_config("none")
    assert httpx.get(f"{address}/v2/models/plain/infer").status_code == 405


def test_more_numbers_than_json_may_have_are_refused(client: Any) -> None:
    """Writing millions of numbers as JSON would delay all clients; binary data are required."""
    count = 2_000_000 // (HEIGHT * WIDTH) + 1
    many = triton.InferInput("image", [count, HEIGHT, WIDTH, 3], "UINT8")
    many.set_data_from_numpy(np.zeros((count, HEIGHT, WIDTH, 3), np.uint8), binary_data=True)
    wanted = triton.InferRequestedOutput("labels", binary_data=False)
    with pytest.raises(InferenceServerException, match="ask for binary data"):
        client.infer("plain", [many], outputs=[wanted])


def test_long_json_that_is_wrong_is_refused_as_short_json_is(address: str) -> None:
    """A decoder process reads it; the error's text is the same."""
    url = f"{address}/v2/models/plain/infer"
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, HEIGHT, WIDTH, 3]}
    said = set()
    for count in (1000, 300_000):
        body = {"inputs": [tensor | {"data": [0] * count}]}
        answer = httpx.post(url, json=body)
        assert answer.status_code == 400
        said.add(answer.json()["detail"].replace(str(count), "N"))
    assert len(said) == 1
