"""Batch and service on a Ray cluster of two nodes of one CPU, with kills in the middle."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="needs the extra `ray`: pip install -e '.[ray]'")

from service.client.outputs import PART
from service.client.progress import Counts, Progress
from service.client.records import Record
from service.cluster.storage import place
from service.launch import free_port
from tests.service import onnx_models
from tests.service.cluster import slow_store
from tests.service.web import opened, photo, png, post, serving

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own models use what pydantic will drop
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster
    from ray.serve.config import HTTPOptions

    from service.cluster import batch as ray_batch
    from service.cluster import serve as ray_serve

pytestmark = [
    pytest.mark.slow,
    # Ray Data reads its own deprecated settings; Ray Serve leaves sockets to the collector.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}
# A node counts as dead after 2 s, not 15; dashboards are not started.
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
ALONE = {
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
    "_system_config": QUICK,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes. The driver runs on the first, and only the driver has the stores' credentials."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # the nodes' processes inherit it
        cluster = Cluster(initialize_head=True, head_node_args=NODE | ALONE)
        try:
            cluster.add_node(**NODE)
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "test")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            ray_batch.connect(cluster.address)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.save(tmp_path_factory.mktemp("models") / "tiny.onnx")


def many(folder: Path, count: int) -> dict[str, bytes]:
    """Photos in a folder and one below it: name -> PNG."""
    (folder / "trip").mkdir(parents=True)
    names = [f"trip/{n:02}.png" if n % 2 else f"{n:02}.png" for n in range(count)]
    images = {name: png(photo(30 + n % 9, 40, seed=n)) for n, name in enumerate(names)}
    for name, image in images.items():
        (folder / name).write_bytes(image)
    return images


def recorded(out: str) -> list[Record]:
    """All records of all runs, in order."""
    folder = place(out)
    lines = [
        line
        for part in folder.files("manifest")
        if part.path.endswith(".jsonl")
        for line in folder.read(part.path).decode().splitlines()
    ]
    return list(map(Record.parse, lines))


class Saboteur(Progress):
    """Call a function when a number of photos are done."""

    def __init__(self, deeds: dict[int, Callable[[], None]]) -> None:
        super().__init__(Counts(), io.StringIO())
        self._deeds = deeds

    def update(self) -> None:
        super().update()
        for settled in [at for at in self._deeds if self.counts.settled() >= at]:
            self._deeds.pop(settled)()


def test_a_killed_actor_and_a_killed_node_lose_no_photo_and_repeat_none(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    slow_store.register()
    images = many(tmp_path / "in", 36)
    out = tmp_path / "out"
    readers = tmp_path / "in" / slow_store.READERS

    def kill_an_actor() -> None:
        os.kill(int(readers.read_text().split()[-1]), signal.SIGKILL)

    def kill_a_node() -> None:
        (node,) = cluster.worker_nodes
        cluster.remove_node(node, allow_graceful=False)

    progress = Saboteur({4: kill_an_actor, 14: kill_a_node})
    options = ray_batch.RayBatchOptions(
        [f"slow://{tmp_path}/in"], str(out), str(model), ("mask",), device="cpu", block=2
    )
    try:
        summary = ray_batch.RayBatch(options, progress).work()
    finally:
        if not cluster.worker_nodes:
            cluster.add_node(**NODE)
    assert progress._deeds == {}
    assert len(set(readers.read_text().split())) >= 3  # two actors and a replacement
    assert (summary.exit_code(), summary.counts.sent) == (0, len(images))
    assert Counter(record.name for record in recorded(str(out))) == Counter(list(images))
    assert {str(path.relative_to(out)) for path in out.rglob("*.png") if PART not in path.name} == {
        name.replace(".png", ".mask.png") for name in images
    }
    again = ray_batch.RayBatch(options, Progress(Counts(), io.StringIO())).work()
    assert (again.counts.skipped, again.counts.settled()) == (len(images), len(images))
    assert not list(out.rglob(f"*{PART}"))  # leftovers of the killed actors
    for name, image in images.items():
        mask = opened((out / name.replace(".png", ".mask.png")).read_bytes())
        assert (mask == onnx_models.expected(opened(image))).all(), name


def test_photos_of_a_bucket_become_the_services_masks_in_a_bucket(
    cluster: Cluster, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken photo is named and stops nothing; the second run does what is missing."""
    moto = pytest.importorskip("moto.server", reason="needs the extra `dev`")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        httpx.put(f"http://127.0.0.1:{port}/bucket").raise_for_status()
        inputs, out = (f"s3://bucket/{name}?{options}" for name in ("in", "out"))
        images = many(tmp_path, 7)
        for name, image in images.items():
            place(inputs).write(name, image)
        place(inputs).write("broken.png", images["00.png"][:100])
        for wrong in ("nobucket/in", "bucket/im", "bucket/00.png", "bucket/in/*.png"):
            missing = f"s3://{wrong}?{options}"
            assert ray_batch.main([missing, "-o", out, "--model", str(model)]) == 2, wrong
            assert f"input s3://{wrong}:" in capsys.readouterr().err
        arguments = [inputs, "-o", out, "--model", str(model), "--output", "mask", "--json"]
        arguments += ["--report", "--fit", "sliding"]
        assert ray_batch.main(arguments) == 1
        first = json.loads(capsys.readouterr().out)
        place(inputs).write("broken.png", images["00.png"])
        assert ray_batch.main(arguments) == 0
        second = json.loads(capsys.readouterr().out)
        masks = {file.path: place(out).read(file.path) for file in place(out).files()}
        records = recorded(out)
        table = place(out).read("report.csv").decode().splitlines()
        sheet = place(out).read("contact-sheet.png")
    finally:
        server.stop()
    head = "photo,status,error,model,model_digest,confidence,pixels,regions,"
    head += "taken,latitude,longitude,background,dim,bright"
    head += ",background_regions,dim_regions,bright_regions"
    assert (table[0], len(table)) == (head, 9)
    assert opened(sheet).shape[2] == 3
    assert [total["name"] for total in second["classes"]] == ["background", "dim", "bright"]
    assert first["classes"][0]["photos"] == 7
    assert second["classes"][0]["photos"] == 8
    assert (first["sent"], first["rejected"], first["skipped"]) == (7, 1, 0)
    assert [failure["name"] for failure in first["failures"]] == ["broken.png"]
    assert (second["sent"], second["rejected"], second["skipped"]) == (1, 0, 7)
    assert Counter(record.name for record in records) == Counter(
        [*images, "broken.png", "broken.png"]
    )
    with serving(model.parent) as client:
        for name, image in images.items():
            answer = post(client, image, output="mask", fit="sliding").content
            assert masks[name.replace(".png", ".mask.png")] == answer, name


def test_an_out_that_cannot_be_written_ends_the_run_with_the_reason(
    cluster: Cluster, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many(tmp_path / "in", 2)
    (tmp_path / "out" / "00.mask.png" / "in the way").mkdir(parents=True)
    arguments = [str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(model)]
    assert ray_batch.main(arguments) == 1
    assert "cannot write below" in capsys.readouterr().out


def test_a_cluster_without_room_for_an_actor_is_an_error_at_once(
    cluster: Cluster, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many(tmp_path / "in", 2)
    arguments = [str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(model)]
    assert ray_batch.main([*arguments, "--gpus-per-actor", "1"]) == 1
    assert "'GPU': 0" in capsys.readouterr().err


def test_replicas_answer_as_the_service_does_and_finish_their_requests(
    cluster: Cluster, model: Path
) -> None:
    port = free_port()
    settings = ray_serve.ClusterSettings(
        models=model.parent,
        device="cpu",
        port=port,
        min_replicas=2,
        max_replicas=2,
        max_wait_ms=1500,  # a single photo takes this long
    )
    url = f"http://127.0.0.1:{port}"

    def segment(image: bytes) -> httpx.Response:
        kind = {"Content-Type": "image/png"}
        return httpx.post(f"{url}/segment?output=mask", content=image, headers=kind, timeout=60)

    image = png(photo())
    with serving(model.parent) as client:
        expected = post(client, image, output="mask").content
    with ThreadPoolExecutor(8) as clients:
        try:
            http = HTTPOptions(host="127.0.0.1", port=port, location="HeadOnly")
            serve.start(http_options=http)
            serve.run(ray_serve.application(settings), name=ray_serve.NAME, route_prefix="/")
            assert httpx.get(f"{url}/readyz").status_code == 200
            refused = segment(b"junk")
            assert refused.json()["code"] == "invalid-image"
            assert refused.headers.get_list("x-request-id") == [refused.json()["request_id"]]
            answers: list[Any] = [clients.submit(segment, image) for _ in range(5)]
            time.sleep(0.7)  # now they wait for the batch to fill
            serve.delete(ray_serve.NAME)
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]
        got = [answer.result() for answer in answers]
    assert [(answer.status_code, answer.content) for answer in got] == [(200, expected)] * 5
    assert {answer.headers["X-Model"] for answer in got} == {"tiny"}
