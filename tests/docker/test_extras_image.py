"""The image with extras reads HEIC and answers gRPC; the plain one names the missing extras."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import httpx
import numpy as np
import pillow_heif
import pytest
from PIL import Image
from tritonclient import grpc as triton

from service.launch import free_port
from service.settings import BUNDLED
from tests.docker import containers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(containers.BUILD_TIMEOUT_S * 2)]

IMAGE = "localhost/deeplab-test:cpu-extras"
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--memory=1g")
CAT = BUNDLED.parent / "samples" / "cat.jpg"
MAX_IMAGE_MB = 480


@pytest.fixture(scope="module")
def engine() -> containers.Engine:
    found = containers.skip_without(lambda: containers.starter(*HARDENED))
    found.build("docker/serve.Dockerfile", IMAGE, "--target=cpu-extras")
    return found


@pytest.fixture(scope="module")
def addresses(engine: containers.Engine) -> Iterator[tuple[str, str]]:
    """HTTP and gRPC of a hardened container."""
    port = free_port()
    options = (*HARDENED, "--stop-timeout=0", f"--publish=127.0.0.1:{port}:8001")
    name = f"deeplab-test-extras-{os.getpid()}"
    container = engine.start(name, IMAGE, *options, "--env=DEEPLAB_GRPC_PORT=8001")
    try:
        container.wait_until_ready()
        yield container.url, f"127.0.0.1:{port}"
    finally:
        container.remove()


def test_heic_gets_the_mask_of_the_same_photo(addresses: tuple[str, str]) -> None:
    """HEIC is lossy, so a few pixels may get another label than from the JPEG."""
    photo, out = Image.open(CAT), io.BytesIO()
    pillow_heif.from_pillow(photo).save(out, quality=95)
    masks = []
    for body in (CAT.read_bytes(), out.getvalue()):
        answer = httpx.post(f"{addresses[0]}/segment", files={"file": body}, timeout=60)
        assert answer.status_code == 200, answer.text
        masks.append(np.asarray(Image.open(io.BytesIO(answer.content))))
    assert (masks[0] == masks[1]).mean() > 0.99


def test_grpc_gives_the_labels_of_http(addresses: tuple[str, str]) -> None:
    client = triton.InferenceServerClient(addresses[1])
    given = triton.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([CAT.read_bytes()], np.object_))
    (model,) = httpx.get(f"{addresses[0]}/models").json()["models"]
    labels = client.infer(model["name"], [given]).as_numpy("labels")
    answer = httpx.post(f"{addresses[0]}/segment", files={"file": CAT.read_bytes()}, timeout=60)
    assert (labels[0] == np.asarray(Image.open(io.BytesIO(answer.content)))).all()
    client.close()


def test_the_image_stays_small(engine: containers.Engine) -> None:
    assert engine.inspect("image", IMAGE)["Size"] < MAX_IMAGE_MB * 1e6
