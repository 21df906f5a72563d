"""Jobs of many photos as clients see them, across restarts too."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.errors import JobsFull, StartupError
from service.http.app import create_app
from service.http.jobs.runner import Jobs
from service.http.jobs.sources import ZipSource
from service.http.jobs.store import FILES, Store, StoredJob
from service.inference import models
from service.settings import Settings
from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import opened, photo, png, serving

KEYS = {name: {"Authorization": f"Bearer {name}"} for name in ("ann", "bob")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    (root / "sub").mkdir()
    (root / "empty").mkdir()
    for seed, name in enumerate(("a.png", "sub/b.png")):
        (root / name).write_bytes(png(photo(seed=seed)))
    (root / "out.png").symlink_to("/etc/passwd")
    return root


@pytest.fixture(scope="module")
def client(
    folder: Path, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    jobs = tmp_path_factory.mktemp("jobs")
    with serving(folder, jobs=jobs, job_inputs=inputs, max_job_photos=5) as client:
        yield client


@contextmanager
def with_keys(folder: Path, jobs: Path) -> Iterator[TestClient]:
    keys = tuple(sha256(name.encode()).hexdigest() for name in KEYS)
    with serving(folder, jobs=jobs, api_keys=keys) as client:
        yield client


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def send(client: Any, body: bytes, **query: Any) -> Any:
    kind = {"Content-Type": "application/zip"}
    return client.post("/jobs", content=body, headers=kind, params=query)


def ended(client: Any, name: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    until = time.monotonic() + 20
    while True:
        job: dict[str, Any] = client.get(f"/jobs/{name}", headers=headers or {}).json()
        if job["ended"] is not None:
            return job
        assert time.monotonic() < until, job
        time.sleep(0.02)


def results(body: bytes) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        files = {name: archive.read(name) for name in archive.namelist()}
    assert next(iter(files)) == "results.json"
    return json.loads(files.pop("results.json"))["results"], files


def test_a_zip_gives_the_zip_that_segment_gives(client: TestClient) -> None:
    files = {"a.png": png(photo()), "b/a.png": png(photo(seed=1)), "notes.txt": b"no photo"}
    sent = send(client, zipped(files), output="mask,json")
    assert sent.status_code == 202
    assert sent.headers["location"] == f"/jobs/{sent.json()['id']}"
    job = ended(client, sent.json()["id"])
    assert (job["state"], job["photos"], job["done"], job["failed"]) == ("done", 3, 3, 1)
    assert job["expires"] == job["ended"] + 86_400
    result = client.get(f"/jobs/{job['id']}/result")
    assert result.headers["content-type"] == "application/zip"
    kind = {"Content-Type": "application/zip"}
    query = {"output": "mask,json"}
    at_once = client.post("/segment", content=zipped(files), headers=kind, params=query)
    assert results(result.content) == results(at_once.content)
    assert job in client.get("/jobs").json()["jobs"]


def test_paths_are_files_and_folders_of_the_allowed_folder(client: TestClient) -> None:
    sent = client.post("/jobs", json={"paths": ["a.png", "sub"]}, params={"output": "mask"})
    entries, files = results(
        client.get(f"/jobs/{ended(client, sent.json()['id'])['id']}/result").content
    )
    assert [each["file"] for each in entries] == ["a.png", "sub/b.png"]
    assert (opened(files["b.mask.png"]) == onnx_models.expected(photo(seed=1))).all()


@pytest.mark.slow
def test_events_tell_every_change_until_the_end(client: TestClient) -> None:
    name = send(client, zipped({"a.png": png(photo())})).json()["id"]
    with client.stream("GET", f"/jobs/{name}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert set(lines[::2]) == {"event: progress"}
    told = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert told[-1] == client.get(f"/jobs/{name}").json()
    assert told[-1]["state"] == "done"


@pytest.mark.slow
def test_readers_of_events_are_bounded_and_counted_while_they_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all places are taken, the answer is 503; a reader that ends frees its place."""
    body = zipped({"a.png": png(photo())})
    with serving(folder, jobs=tmp_path) as client:
        name = send(client, body).json()["id"]
        ended(client, name)
        monkeypatch.setattr("service.http.jobs.routes.MOST_FOLLOWERS", 1)
        for _ in range(3):
            assert client.get(f"/jobs/{name}/events").status_code == 200
        monkeypatch.setattr("service.http.jobs.routes.MOST_FOLLOWERS", 0)
        answer = client.get(f"/jobs/{name}/events")
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")


def test_a_removed_job_is_gone(client: TestClient) -> None:
    name = send(client, zipped({"a.png": png(photo())})).json()["id"]
    assert client.delete(f"/jobs/{name}").status_code == 204
    for path in (f"/jobs/{name}", f"/jobs/{name}/result", f"/jobs/{name}/events"):
        assert client.get(path).json()["code"] == "unknown-job"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "one of them"),
        ({"urls": []}, 400, "one of them"),
        ({"urls": ["http://a/"], "paths": ["a.png"]}, 400, "one of them"),
        ({"urls": ["http://example.org/"]}, 400, "--allow-url-hosts"),
        ({"paths": ["../x"]}, 400, "leads out"),
        ({"paths": ["/etc/passwd"]}, 400, "leads out"),
        ({"paths": ["out.png"]}, 400, "leads out"),
        ({"paths": ["none.png"]}, 400, "there is no"),
        ({"paths": ["a\0b"]}, 400, "no path"),
        ({"paths": ["a" * 300]}, 400, "no path"),
        ({"paths": ["empty"]}, 400, "there are no files"),
        ({"paths": ["."] * 4}, 400, "more than 5"),
        ({"path": ["a.png"]}, 400, "path"),
    ],
)
def test_what_no_job_may_ask_is_refused(
    client: TestClient, body: dict[str, Any], status: int, says: str
) -> None:
    answer = client.post("/jobs", json=body)
    assert answer.status_code == status
    assert says in answer.json()["detail"]


@pytest.mark.slow
def test_files_of_others_in_the_folder_for_jobs_stay(folder: Path, tmp_path: Path) -> None:
    """A folder that the operator names may hold anything; only folders of jobs are removed."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(photo()))
    with serving(folder, jobs=tmp_path) as client:
        assert ended(client, send(client, zipped({"a.png": png(photo())})).json()["id"])
    with serving(folder, jobs=tmp_path):
        pass
    assert (tmp_path / "photos" / "a.png").exists()


def test_a_photo_that_breaks_the_service_fails_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error, while one of three photos is read."""
    read = ZipSource.read

    async def broken(self: ZipSource, number: int, name: str) -> bytes:
        if name == "b.png":
            raise RuntimeError("never seen before")
        return await read(self, number, name)

    monkeypatch.setattr(ZipSource, "read", broken)
    three = zipped({f"{name}.png": png(photo()) for name in "abc"})
    with serving(folder, jobs=tmp_path) as client:
        job = ended(client, send(client, three).json()["id"])
    assert (job["state"], job["done"], job["failed"]) == ("done", 3, 1)


def test_a_job_that_is_removed_while_it_is_taken_does_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The removal waits until the job has left the queue, and then cancels it."""
    take, taken, go_on = Store.take, threading.Event(), threading.Event()

    def slow(self: Store) -> StoredJob | None:
        job = take(self)
        if job is not None:
            taken.set()
            go_on.wait(20)
        return job

    monkeypatch.setattr(Store, "take", slow)
    with serving(folder, jobs=tmp_path) as client, ThreadPoolExecutor(1) as pool:
        name = send(client, zipped({"a.png": png(photo())})).json()["id"]
        assert taken.wait(20)
        removal = pool.submit(client.delete, f"/jobs/{name}")
        time.sleep(0.2)
        go_on.set()
        assert removal.result(20).status_code == 204
        assert client.get(f"/jobs/{name}").status_code == 404
    assert not (tmp_path / FILES / name).exists()
    assert name not in caplog.text


def test_a_job_that_is_queued_while_the_queue_is_found_empty_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers have just seen an empty queue, and do not yet wait for a job."""
    take, empty, go_on = Store.take, threading.Semaphore(0), threading.Event()

    def slow(self: Store) -> StoredJob | None:
        job = take(self)
        if job is None:
            empty.release()
            go_on.wait(20)
        return job

    monkeypatch.setattr(Store, "take", slow)
    monkeypatch.setattr("service.http.jobs.runner.JOBS_AT_ONCE", 1)
    with serving(folder, jobs=tmp_path) as client:
        assert empty.acquire(timeout=20)
        name = send(client, zipped({"a.png": png(photo())})).json()["id"]
        go_on.set()
        assert ended(client, name)["state"] == "done"


def test_paths_are_counted_before_they_are_looked_up(client: TestClient) -> None:
    """A million paths in 4 MB of JSON would hold a thread up for a minute."""
    answer = client.post("/jobs", json={"paths": ["a.png"] * 6})
    assert "6 of them, the limit of a job is 5" in answer.json()["detail"]


def test_jobs_that_have_ended_are_bounded_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs are kept for a day; there must not be millions of them."""
    monkeypatch.setattr("service.http.jobs.routes.MOST_KEPT", 2)
    body = zipped({"a.png": png(photo())})
    with serving(folder, jobs=tmp_path) as client:
        names = [send(client, body).json()["id"] for _ in range(2)]
        for name in names:
            ended(client, name)
        assert send(client, body).json()["code"] == "jobs-full"
        client.delete(f"/jobs/{names[0]}")
        assert send(client, body).status_code == 202


def test_the_newest_jobs_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list has a limit; the oldest of those in it comes first."""
    monkeypatch.setattr("service.http.jobs.store.LISTED", 3)
    store = Store(tmp_path)
    for name in "abcde":
        store.add(name, "", "urls", query="{}", photos=[], size=2)
        time.sleep(0.002)
    assert [job.id for job in store.all("")] == ["c", "d", "e"]
    assert (store.totals.jobs, store.totals.bytes) == (5, 10)
    store.close()
    store = Store(tmp_path)
    store.remove("a")
    assert (store.totals.jobs, store.totals.bytes) == (4, 8)
    store.close()


@pytest.mark.slow
def test_a_result_counts_twice_while_it_is_made(folder: Path, tmp_path: Path) -> None:
    """The outputs and the ZIP that they are copied into are on the disk at the same time."""
    body = zipped({"a.png": png(photo(400, 500))})
    with serving(folder, jobs=tmp_path / "a") as client:
        job = ended(client, send(client, body, output="color").json()["id"])
        result = len(client.get(f"/jobs/{job['id']}/result").content)
    most = len(body) + result * 3 // 2
    with serving(folder, jobs=tmp_path / "b", max_jobs_bytes=most, max_job_bytes=most) as client:
        assert ended(client, send(client, body, output="color").json()["id"])["state"] == "failed"
    most = len(body) + result * 2
    with serving(folder, jobs=tmp_path / "c", max_jobs_bytes=most, max_job_bytes=most) as client:
        assert ended(client, send(client, body, output="color").json()["id"])["state"] == "done"


def test_a_store_closes_while_threads_use_it(tmp_path: Path) -> None:
    """SQLite itself would end the process by a segmentation fault."""
    for _ in range(30):
        store = Store(tmp_path)
        with ThreadPoolExecutor(4) as pool:
            using = [pool.submit(lambda s: [s.take() for _ in range(50)], store) for _ in range(4)]
            store.close()
        for each in using:
            assert each.exception() is None or isinstance(each.exception(), sqlite3.Error)


def test_bytes_that_are_arriving_count_too(folder: Path, tmp_path: Path) -> None:
    settings = Settings(models=folder, jobs=tmp_path, max_jobs_bytes=100, max_job_bytes=90)
    nothing: Any = None  # it works on no photo
    jobs = Jobs(tmp_path, settings, nothing, nothing, None)
    with jobs.arrival() as first:
        first.add(60)
        with jobs.arrival() as second, pytest.raises(JobsFull):
            second.add(60)
    with jobs.arrival() as third:
        third.add(60)
    jobs.store.close()


def test_a_bad_zip_or_option_makes_no_job(client: TestClient) -> None:
    before = client.get("/jobs").json()
    assert send(client, b"no zip").json()["code"] == "invalid-request"
    many = zipped({f"{number}.png": b"x" for number in range(6)})
    assert "limit is 5" in send(client, many).json()["detail"]
    good = zipped({"a.png": png(photo())})
    assert send(client, good, output="none").json()["code"] == "invalid-request"
    assert send(client, good, model="none").json()["code"] == "unknown-model"
    assert "name the model" in send(client, good, quality="auto").json()["detail"]
    assert client.post("/jobs", content=b"x").json()["code"] == "unsupported-media-type"
    assert client.get("/jobs").json() == before


def test_a_job_is_known_to_its_key_alone(folder: Path, tmp_path: Path) -> None:
    with with_keys(folder, tmp_path) as client:
        kind = {"Content-Type": "application/zip"}
        body = zipped({"a.png": png(photo())})
        name = client.post("/jobs", content=body, headers=KEYS["ann"] | kind).json()["id"]
        ended(client, name, KEYS["ann"])
        for path in (f"/jobs/{name}", f"/jobs/{name}/result", f"/jobs/{name}/events"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers=KEYS["bob"]).json()["code"] == "unknown-job"
            assert client.get(path, headers=KEYS["ann"]).status_code == 200
        assert client.delete(f"/jobs/{name}", headers=KEYS["bob"]).status_code == 404
        assert client.get("/jobs", headers=KEYS["bob"]).json() == {"jobs": []}


@pytest.mark.slow
def test_the_disk_is_bounded(folder: Path, tmp_path: Path) -> None:
    body = zipped({"a.png": png(photo(400, 500))})
    less, more = len(body) - 1, len(body) + 100
    with serving(folder, jobs=tmp_path / "a", max_jobs_bytes=less, max_job_bytes=less) as client:
        assert send(client, body).json()["code"] == "jobs-full"
    with serving(folder, jobs=tmp_path / "b", max_jobs_bytes=more, max_job_bytes=more) as client:
        job = ended(client, send(client, body, output="npz,color").json()["id"])
        assert job["state"] == "failed"
        assert "their limit" in job["error"]
        assert client.get(f"/jobs/{job['id']}/result").json()["code"] == "job-not-done"
    with serving(folder, jobs=tmp_path / "c", max_job_bytes=len(body) - 1) as client:
        assert send(client, body).json()["code"] == "body-too-large"


class FullDisk(sqlite3.Connection):
    """A database on a disk that is full while the jobs beside it have more than ROOM bytes."""

    ROOM = 2_000
    folder: Path

    def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
        if not sql.startswith("SELECT") and self._used() > self.ROOM:
            raise sqlite3.OperationalError("database or disk is full")
        return super().execute(sql, values)

    def _used(self) -> int:
        used = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with suppress(FileNotFoundError):  # a job removes its files meanwhile
                    used += (Path(folder) / name).stat().st_size
        return used


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for jobs on a `FullDisk`."""
    monkeypatch.setattr(FullDisk, "folder", tmp_path / FILES, raising=False)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=FullDisk))
    for name in ("SWEEP_S", "FULL_S"):
        monkeypatch.setattr(f"service.http.jobs.runner.{name}", 0.05, raising=False)
    return tmp_path


def test_a_full_disk_fails_a_job_and_not_the_jobs_after_it(folder: Path, full_disk: Path) -> None:
    """The database is on that disk too, so the job's files are removed before its end is noted."""
    with serving(folder, jobs=full_disk) as client:
        body = zipped({"a.png": png(photo(30, 40))})
        large = send(
            client, body, output="overlay,side-by-side,blur,color,npz", overlay_format="png"
        )
        job = ended(client, large.json()["id"])
        assert (job["state"], job["error"]) == (
            "failed",
            "the list of jobs cannot be written: database or disk is full",
        )
        assert not [path for path in (full_disk / FILES).rglob("*") if path.is_file()]
        small = send(client, zipped({"a.png": png(photo())}), output="mask")
        assert ended(client, small.json()["id"])["state"] == "done"


def test_a_full_disk_can_be_emptied_by_removing_jobs(folder: Path, full_disk: Path) -> None:
    body = zipped({"a.png": png(photo())})
    with serving(folder, jobs=full_disk) as client:
        name = ended(client, send(client, body, output="mask").json()["id"])["id"]
        (full_disk / FILES / name / "other").write_bytes(bytes(FullDisk.ROOM))
        refused = send(client, body)
        assert (refused.status_code, refused.json()["code"]) == (503, "jobs-full")
        assert client.delete(f"/jobs/{name}").status_code == 204
        assert send(client, body).status_code == 202


def test_a_service_starts_on_a_full_disk_and_goes_on_when_there_is_room(
    folder: Path, full_disk: Path
) -> None:
    store = Store(full_disk)
    name, place = store.reserve()
    (place / "input.zip").write_bytes(zipped({"a.png": png(photo())}))
    store.add(name, "", "zip", query="{}", photos=["a.png"], size=1)
    assert store.take() is not None
    store.close()
    (full_disk / FILES / "other").write_bytes(bytes(FullDisk.ROOM + 1))
    with serving(folder, jobs=full_disk) as client:
        assert client.get(f"/jobs/{name}").json()["state"] == "running"
        (full_disk / FILES / "other").unlink()
        assert ended(client, name)["state"] == "done"


@pytest.mark.slow
def test_bodies_of_jobs_may_be_larger_than_others(folder: Path, tmp_path: Path) -> None:
    body = zipped({f"{number}.png": png(photo(200, 200, number)) for number in range(20)})
    with serving(folder, jobs=tmp_path, max_body_bytes=len(body) // 2) as client:
        assert ended(client, send(client, body).json()["id"])["failed"] == 0


@pytest.mark.slow
def test_jobs_expire(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.jobs.runner.SWEEP_S", 0.05)
    with serving(folder, jobs=tmp_path, job_ttl_s=1) as client:
        name = send(client, zipped({"a.png": png(photo())})).json()["id"]
        ended(client, name)
        assert (tmp_path / FILES / name).exists()
        until = time.monotonic() + 10
        while (tmp_path / FILES / name).exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        assert client.get(f"/jobs/{name}").status_code == 404


@pytest.mark.slow
def test_a_job_is_gone_when_its_time_is_over_and_not_when_it_is_swept_away(
    folder: Path, tmp_path: Path
) -> None:
    """Files are removed every 30 s; requests for an expired job fail before that."""
    with serving(folder, jobs=tmp_path, job_ttl_s=1) as client:
        name = send(client, zipped({"a.png": png(photo())})).json()["id"]
        job = ended(client, name)
        while time.time() < job["expires"]:
            time.sleep(0.05)
        assert client.get("/jobs").json() == {"jobs": []}
        for path in ("", "/result", "/events"):
            assert client.get(f"/jobs/{name}{path}").json()["code"] == "unknown-job"
        assert (tmp_path / FILES / name).exists()


def test_a_result_that_has_just_been_removed_is_an_unknown_job(
    folder: Path, tmp_path: Path
) -> None:
    """Not a failure of the service."""
    with serving(folder, jobs=tmp_path) as client:
        name = send(client, zipped({"a.png": png(photo())})).json()["id"]
        ended(client, name)
        (tmp_path / FILES / name / "result.zip").unlink()
        assert client.get(f"/jobs/{name}/result").json()["code"] == "unknown-job"


@pytest.mark.slow
def test_photos_of_jobs_wait_for_other_requests(folder: Path, tmp_path: Path) -> None:
    settings = Settings(models=folder, device="cpu", threads=1, jobs=tmp_path, decoders=0)
    loaded = models.load(settings)
    app = create_app(settings, loaded)
    with TestClient(app) as client, ThreadPoolExecutor(1) as other:
        gate, entered, run = threading.Event(), threading.Event(), loaded.get(None).engine.predict

        def held(images: Any, extras: Any) -> Any:
            entered.set()
            assert gate.wait(10)
            return run(images, extras)

        loaded.get(None).batcher.sessions[0].run = held
        kind = {"Content-Type": "image/png"}
        asked = other.submit(client.post, "/segment", content=png(photo()), headers=kind)
        assert entered.wait(10)
        name = send(client, zipped({"a.png": png(photo())})).json()["id"]
        time.sleep(0.3)
        assert client.get(f"/jobs/{name}").json()["done"] == 0
        gate.set()
        assert asked.result().status_code == 200
        assert ended(client, name)["failed"] == 0


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = Store(tmp_path)
    with pytest.raises(StartupError, match="another process"):
        Store(tmp_path)
    first.close()
    Store(tmp_path).close()


def test_without_the_setting_there_are_no_jobs(folder: Path) -> None:
    """Every path of jobs says which setting is missing."""
    with serving(folder) as client:
        for method, path in (("GET", ""), ("POST", ""), ("PUT", ""), ("DELETE", "/a/result")):
            answer = client.request(method, f"/jobs{path}")
            assert answer.status_code == 404
            assert "--jobs DIR" in answer.json()["detail"]
        assert "/jobs" not in client.get("/openapi.json").json()["paths"]


def test_a_method_that_jobs_do_not_take_names_all_that_they_take(client: TestClient) -> None:
    """GET and POST of /jobs are two routes; the answer and its header name both."""
    answer = client.put("/jobs")
    assert answer.status_code == 405
    assert answer.json()["detail"] == "/jobs does not take PUT: send GET, POST"
    assert answer.headers["Allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        ("bytes=0-3", 206, ""),
        ("bytes=x", 400, "send bytes=FIRST-LAST"),
        ("lines=1-2", 400, "send bytes=FIRST-LAST"),
        ("bytes=5-2", 400, "send bytes=FIRST-LAST"),
        ("bytes=99999999-", 416, "the result ends before it"),
    ],
)
def test_a_bad_range_of_a_result_is_answered_with_a_problem(
    client: TestClient, asked: str, status: int, says: str
) -> None:
    name = send(client, zipped({"a.png": png(photo())})).json()["id"]
    ended(client, name)
    answer = client.get(f"/jobs/{name}/result", headers={"Range": asked})
    assert answer.status_code == status
    if status == 206:
        assert answer.content == b"PK\3\4"
        return
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    assert ("Content-Range" in answer.headers) == (status == 416)


def test_results_name_the_model_that_made_each(client: TestClient) -> None:
    """The name and the digest are those of /models."""
    name = send(client, zipped({"a.png": png(photo()), "b.txt": b"no photo"})).json()["id"]
    ended(client, name)
    (good, bad), _ = results(client.get(f"/jobs/{name}/result").content)
    (served,) = client.get("/models").json()["models"]
    assert (good["model"], good["model_digest"]) == (served["name"], served["digest"])
    assert "model" not in bad


@pytest.mark.slow
def test_a_killed_service_finishes_its_jobs_after_the_next_start(
    folder: Path, tmp_path: Path
) -> None:
    """The real service in the serving environment, killed in the middle of a job."""
    count = 200
    body = zipped({f"{number}.png": png(photo(300, 400, number % 7)) for number in range(count)})
    jobs = tmp_path / "jobs"
    flags = ("--jobs", str(jobs), "--log-level", "error")
    with running(folder, *flags) as (url, process), httpx.Client(base_url=url) as client:
        name = send(client, body).json()["id"]
        until = time.monotonic() + 20
        while not 0 < client.get(f"/jobs/{name}").json()["done"] < count:
            assert time.monotonic() < until
        process.kill()
    with running(folder, *flags) as (url, _), httpx.Client(base_url=url) as client:
        job = ended(client, name)
        assert (job["state"], job["done"], job["failed"]) == ("done", count, 0)
        entries, files = results(client.get(f"/jobs/{name}/result").content)
        kind = {"Content-Type": "image/png"}
        at_once = client.post("/segment", content=png(photo(300, 400, 1)), headers=kind)
    assert [each["file"] for each in entries] == [f"{number}.png" for number in range(count)]
    assert len(files) == count
    assert files["8.mask.png"] == at_once.content
    assert sorted(path.name for path in (jobs / FILES / name).iterdir()) == ["result.zip"]


def sampled(client: TestClient) -> dict[str, float]:
    lines = [line.split(" ") for line in client.get("/metrics").text.splitlines()]
    return {line[0]: float(line[-1]) for line in lines if line[0].startswith("deeplab_job")}


@pytest.mark.slow
def test_metrics_count_jobs_photos_and_bytes_and_the_wait_of_the_oldest(
    folder: Path, tmp_path: Path
) -> None:
    with serving(folder, jobs=tmp_path, max_job_bytes=10**6, max_jobs_bytes=10**6) as client:
        none = sampled(client)
        assert none['deeplab_jobs{state="queued"}'] == none["deeplab_jobs_oldest_seconds"] == 0
        assert none['deeplab_job_photos_total{result="failed"}'] == none["deeplab_jobs_bytes"] == 0
        name = send(client, zipped({"a.png": png(photo()), "b.txt": b"no photo"})).json()["id"]
        ended(client, name)
        some = sampled(client)
        assert some['deeplab_jobs{state="done"}'] == 1
        assert some['deeplab_job_photos_total{result="done"}'] == 1
        assert some['deeplab_job_photos_total{result="failed"}'] == 1
        size = len(client.get(f"/jobs/{name}/result").content)
        assert (some["deeplab_jobs_bytes"], some["deeplab_jobs_bytes_limit"]) == (size, 10**6)
    store = Store(tmp_path)
    waiting, _ = store.reserve()
    store.add(waiting, "", "urls", query="{}", photos=["https://example.org/a.png"], size=0)
    with store._writing() as database:
        database.execute("UPDATE jobs SET created = created - 100 WHERE id = ?", (waiting,))
    store.close()
    settings = Settings(models=folder, device="cpu", jobs=tmp_path)
    with_waiting = TestClient(create_app(settings, models.load(settings)))  # not started
    assert with_waiting.get("/metrics").status_code == 200
    found = sampled(with_waiting)
    assert 100 <= found["deeplab_jobs_oldest_seconds"] < 160
    assert found['deeplab_jobs{state="queued"}'] == 1
