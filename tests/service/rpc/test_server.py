"""The Open Inference Protocol over gRPC, tested with NVIDIA's own client."""

from __future__ import annotations

import io
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from service.bench import vitals
from service.launch import free_port
from service.rpc.server import client_address
from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import photo

HEIGHT, WIDTH = onnx_models.SIZE
IMAGES = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
MB = 1_000_000
KEY = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """HTTP and gRPC of a service that needs a key."""
    folder: Path = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "sure.onnx", confidence=True, on_request=True)
    port = free_port()
    digest = sha256(b"secret").hexdigest()
    flags = ("--grpc-port", str(port), "--api-keys", digest, "--max-body-bytes", "500000")
    # The development environment: the serving one has no gRPC.
    with running(folder, *flags, program=sys.executable) as (url, _):
        yield url, f"127.0.0.1:{port}"


@pytest.fixture
def client(addresses: tuple[str, str]) -> Iterator[Any]:
    client = triton.InferenceServerClient(addresses[1])
    yield client
    client.close()


def tensor(values: Any = IMAGES) -> Any:
    given = triton.InferInput("image", list(values.shape), "UINT8")
    given.set_data_from_numpy(values)
    return given


@pytest.mark.slow
def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sure", headers=KEY)
    assert list(client.get_server_metadata(headers=KEY).extensions) == ["binary_tensor_data"]
    about = client.get_model_metadata("sure", headers=KEY)
    assert [(each.name, list(each.shape)) for each in about.inputs] == [
        ("image", [-1, HEIGHT, WIDTH, 3])
    ]
    assert [each.name for each in about.outputs] == ["labels", "confidence"]


@pytest.mark.slow
def test_tensors_go_in_and_out(client: Any) -> None:
    wanted = [triton.InferRequestedOutput("confidence"), triton.InferRequestedOutput("labels")]
    answer = client.infer("sure", [tensor()], outputs=wanted, request_id="mine", headers=KEY)
    assert (answer.as_numpy("labels") == onnx_models.expected(IMAGES)).all()
    assert (answer.as_numpy("confidence") == IMAGES[..., 0]).all()
    assert (answer.get_response().id, answer.get_response().model_version) == ("mine", "1")


@pytest.mark.slow
def test_encoded_photos_get_their_own_size(client: Any) -> None:
    out = io.BytesIO()
    Image.fromarray(photo(100, 150)).save(out, "PNG")
    given = triton.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([out.getvalue()], np.object_))
    labels = client.infer("sure", [given], headers=KEY).as_numpy("labels")
    assert labels.shape == (1, 100, 150)


@pytest.mark.slow
def test_asynchronous_calls_and_deadlines(client: Any) -> None:
    told: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    for _ in range(8):
        client.async_infer(
            "sure", [tensor()], lambda result, error: told.put((result, error)), headers=KEY
        )
    for _ in range(8):
        result, error = told.get(timeout=10)
        assert error is None
        assert (result.as_numpy("labels") == onnx_models.expected(IMAGES)).all()
    with pytest.raises(InferenceServerException, match="Deadline"):
        client.infer("sure", [tensor()], headers=KEY, client_timeout=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "headers", "values", "status", "says"),
    [
        ("none", KEY, IMAGES, "NOT_FOUND", "the models are: sure"),
        ("sure", {}, IMAGES, "UNAUTHENTICATED", "valid API key"),
        ("sure", KEY, IMAGES[:, :2], "INVALID_ARGUMENT", "must be"),
        ("sure", KEY, np.zeros((60, HEIGHT, WIDTH, 3), np.uint8), "RESOURCE_EXHAUSTED", "bytes"),
        ("sure", KEY, np.zeros((99, HEIGHT, WIDTH, 3), np.uint8), "RESOURCE_EXHAUSTED", "larger"),
    ],
)
def test_errors_have_their_status_and_text(
    client: Any, model: str, headers: dict[str, str], values: Any, status: str, says: str
) -> None:
    with pytest.raises(InferenceServerException, match=says) as raised:
        client.infer(model, [tensor(values)], headers=headers)
    assert raised.value.status() == f"StatusCode.{status}"


def call(address: str, method: str, data: bytes) -> bytes:
    with grpc.insecure_channel(address) as channel:
        answer: bytes = channel.unary_unary(method)(data, timeout=10)
    return answer


@pytest.mark.slow
def test_the_health_check_of_grpc_is_answered(addresses: tuple[str, str]) -> None:
    assert call(addresses[1], "/grpc.health.v1.Health/Check", b"") == b"\x08\x01"


@pytest.mark.slow
def test_junk_is_refused(addresses: tuple[str, str]) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        call(addresses[1], "/inference.GRPCInferenceService/ModelInfer", b"\xff\xff\xff")
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


LIVE = "/inference.GRPCInferenceService/ServerLive"


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The address and process id of a service that lets one message of 20 MB arrive at a time."""
    onnx_models.save(tmp_path / "tiny.onnx")
    port = free_port()
    limits = ("--max-body-bytes", str(20 * MB), "--max-pending-bytes", str(45 * MB))
    flags = ("--grpc-port", str(port), *limits, "--body-timeout-s", "8")
    with running(tmp_path, *flags, program=sys.executable) as (_, process):
        yield f"127.0.0.1:{port}", process.pid


@pytest.mark.slow
def test_messages_that_arrive_together_take_the_memory_of_one(narrow: tuple[str, int]) -> None:
    """Twenty-four of 20 MB are answered, and memory grows by a fraction of their 480 MB.

    Measured: 88 MiB, and 57 for one.
    """
    address, pid = narrow
    assert call(address, LIVE, b"") == b"\x08\x01"
    before = vitals.read(pid).peak_rss_mib
    long = bytes.fromhex("7a80dac409") + bytes(20 * MB)  # field 15, which no request has
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: call(address, LIVE, long), range(24)))
    assert answers == [b"\x08\x01"] * 24
    assert vitals.read(pid).peak_rss_mib - before < 200


@pytest.mark.slow
def test_a_message_that_does_not_arrive_ends_and_lets_others_in(narrow: tuple[str, int]) -> None:
    """The stream is open, and its one message never comes."""
    address, _ = narrow
    over = threading.Event()

    def never() -> Iterator[bytes]:
        over.wait(30)
        yield b""

    with grpc.insecure_channel(address) as channel:
        slow = channel.stream_unary(LIVE).future(never(), timeout=20)
        time.sleep(0.5)
        assert call(address, LIVE, b"") == b"\x08\x01"
        with pytest.raises(grpc.RpcError, match="took more than 8 s to arrive") as raised:
            slow.result(20)
        over.set()
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.slow
def test_calls_are_counted_and_logged_as_requests(addresses: tuple[str, str], client: Any) -> None:
    def count() -> float:
        text = httpx.get(f"{addresses[0]}/metrics", headers=KEY).text
        line = 'deeplab_requests_total{method="POST",route="/v2/models/{name}/infer",status="200"}'
        (found,) = [each for each in text.splitlines() if each.startswith(line)]
        return float(found.rpartition(" ")[2])

    before = count()
    client.infer("sure", [tensor()], headers=KEY)
    assert count() == before + 1


@pytest.mark.slow
def test_without_the_extra_the_service_says_what_to_install(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    flags = ["--models", str(tmp_path), "--port", "0", "--grpc-port", str(free_port())]
    code = (
        "import sys; sys.modules['grpc'] = None; from service.__main__ import main; "
        f"sys.exit(main({flags}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "install the grpc extra" in done.stderr


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:50123", "10.1.2.3"),
        ("ipv6:%5B2001:db8::1%5D:50123", "2001:db8::1"),
        ("ipv6:[::1]:50123", "::1"),
        ("unix:/run/deeplab.sock", "unix:/run/deeplab.sock"),
    ],
)
def test_a_client_is_its_address_whatever_its_port(peer: str, address: str) -> None:
    """Otherwise each connection would have its own limit (--max-requests-per-client)."""
    assert client_address(peer) == address
