"""Reloading: the new model is checked before it takes over, and no request fails."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import onnx
import onnxruntime as ort
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.bench import vitals
from service.errors import StartupError
from service.http.app import create_app
from service.inference import models
from service.inference.contract import METADATA_KEY, InputSize
from service.settings import BUNDLED, SAMPLES, Settings
from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import Held, end_session, loopback, opened, photo, png, post, serving

BODY = png(photo())
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx_models.save(tmp_path / "tiny.onnx")
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with serving(folder) as client:
        yield client


def brightest(client: TestClient) -> int:
    return int(opened(post(client, BODY).content).max())


def until(claim: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not claim() and time.monotonic() < end:
        time.sleep(0.02)
    return claim()


def test_a_new_file_takes_over(client: TestClient, folder: Path) -> None:
    old = client.get("/models/tiny").json()["digest"]
    assert brightest(client) == 2
    assert client.post("/models/tiny/reload").json()["changed"] is False
    onnx_models.save(folder / "tiny.onnx", brightest=1)
    answer = client.post("/models/tiny/reload").json()
    assert answer["changed"] is True
    assert answer["digest"] == client.get("/models/tiny").json()["digest"] != old
    assert brightest(client) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "batches"), [({}, 3), ({"max_batch": 3}, 1)])
def test_a_cpu_runs_photos_one_by_one_unless_a_batch_size_is_set(
    folder: Path, setting: dict[str, int], batches: int
) -> None:
    """With another batch size each photo would wait a minute for a full batch."""
    with serving(folder, max_wait_ms=60_000, **setting) as client:
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: post(client, BODY), range(3)))
        metrics = client.get("/metrics").text
    assert [answer.status_code for answer in answers] == [200] * 3
    assert f'deeplab_batch_size_count{{model="tiny"}} {batches}.0' in metrics


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_bad_file_leaves_the_old_model_serving(
    client: TestClient, folder: Path, content: bytes | None
) -> None:
    path = folder / "tiny.onnx"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    answer = client.post("/models/tiny/reload")
    assert (answer.status_code, answer.json()["code"]) == (409, "model-unusable")
    assert brightest(client) == 2
    assert client.get("/readyz").status_code == 200


@pytest.mark.slow
def test_a_file_that_loads_but_does_not_run_leaves_the_old_model_serving(
    client: TestClient, folder: Path
) -> None:
    wrong = InputSize(policy="fixed", height=7, width=7, pad=(0, 0, 0))
    metadata = {METADATA_KEY: onnx_models.contract(input=wrong).model_dump_json()}
    onnx_models.save(folder / "tiny.onnx", metadata)
    answer = client.post("/models/tiny/reload")
    assert (answer.status_code, answer.json()["code"]) == (409, "model-unusable")
    assert brightest(client) == 2


def test_only_the_expected_digest_takes_over(client: TestClient, folder: Path) -> None:
    onnx_models.save(folder / "tiny.onnx", brightest=1)
    answer = client.post("/models/tiny/reload", params={"digest": "0" * 64})
    assert (answer.status_code, answer.json()["code"]) == (409, "model-unusable")
    assert brightest(client) == 2


@pytest.mark.parametrize("name", ["none", "..%2Ftiny", "..", "tiny.onnx"])
def test_only_files_of_the_folder_can_be_loaded(client: TestClient, name: str) -> None:
    assert client.post(f"/models/{name}/reload").status_code in {404, 405}


@pytest.mark.slow
def test_reloading_under_load_fails_no_request(client: TestClient, folder: Path) -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            statuses.append(post(client, BODY).status_code)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(6):
        onnx_models.save(folder / "tiny.onnx", brightest=1 + turn % 2)
        assert client.post("/models/tiny/reload").status_code == 200
    stop.set()
    for thread in threads:
        thread.join(20)
    assert len(statuses) > 10
    assert set(statuses) == {200}


@pytest.mark.slow
def test_a_watched_folder_needs_no_call(folder: Path) -> None:
    with serving(folder, watch_models_s=0.05) as client:
        assert brightest(client) == 2
        onnx_models.save(folder / "tiny.onnx", brightest=1)
        assert until(lambda: brightest(client) == 1)
        (folder / "tiny.onnx").write_bytes(b"broken")
        time.sleep(0.2)
        assert brightest(client) == 1
        onnx_models.save(folder / "other.onnx")
        assert until(lambda: client.get("/models/other").status_code == 200)


@pytest.mark.slow
def test_several_sessions_share_the_threads_and_give_the_same_masks(folder: Path) -> None:
    settings = Settings(models=folder, device="cpu", threads=5, sessions=2, max_batch=1)
    loaded = models.load(settings)
    assert [engine.threads for engine in loaded.get(None).engines] == [2, 2]
    with loopback(create_app(settings, loaded)) as client:
        assert client.get("/models/tiny").json()["sessions"] == 2
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: post(client, BODY), range(12)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "sessions", "each"), [(1, 3, 1), (8, 2, 4), (7, 3, 2)])
def test_every_session_has_a_thread(folder: Path, threads: int, sessions: int, each: int) -> None:
    settings = Settings(models=folder, device="cpu", threads=threads, sessions=sessions)
    loaded = models.load_engines(folder / "tiny.onnx", settings)
    assert [engine.threads for engine in loaded] == [each] * sessions


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (2, 2), (3, 3), (16, 4)])
def test_on_a_cpu_as_many_runs_at_a_time_as_there_are_threads(
    folder: Path, threads: int, lanes: int
) -> None:
    settings = Settings(models=folder, device="cpu", threads=threads)
    loaded = models.load(settings)
    assert len(loaded.get(None).engines) == 1
    with loopback(create_app(settings, loaded)) as client:
        assert client.get("/models/tiny").json()["sessions"] == lanes
        assert client.get("/readyz").status_code == 200
        alone = post(client, BODY)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: post(client, BODY), range(16)))
    assert {answer.content for answer in answers} == {alone.content}


@pytest.mark.slow
def test_missing_gpus_leave_all_threads_to_the_cpu(folder: Path) -> None:
    settings = Settings(models=folder, device="auto", gpus=(0, 1), threads=8)
    loaded = models.load_engines(folder / "tiny.onnx", settings)
    if loaded[0].provider.startswith(("CUDA", "Tensorrt")):
        pytest.skip("a working GPU is present")
    assert [engine.threads for engine in loaded] == [8]


@pytest.mark.slow
def test_a_session_that_is_missing_is_replaced_by_a_reload(folder: Path) -> None:
    settings = Settings(models=folder, device="cpu", threads=1, sessions=2)
    loaded = models.load(settings)
    with loopback(create_app(settings, loaded)) as client:
        end_session(loaded)
        assert until(lambda: client.get("/models/tiny").json()["sessions"] == 1)
        assert client.get("/readyz").status_code == 200
        answer = client.post("/models/tiny/reload").json()
        assert (answer["changed"], answer["sessions"]) == (True, 2)
        assert client.post("/models/tiny/reload").json()["changed"] is False


def test_a_dead_model_is_revived_by_the_file_that_was_served_and_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder may have a file that was tried out and dropped. The log says what to do."""
    monkeypatch.setattr("service.inference.models.REVIVE_EVERY_S", 0.05)
    served = (folder / "tiny.onnx").read_bytes()
    settings = Settings(models=folder, device="cpu", threads=1)
    loaded = models.load(settings)
    with loopback(create_app(settings, loaded)) as client:
        digest = client.get("/models/tiny").json()["digest"]
        onnx_models.save(folder / "tiny.onnx", brightest=1)
        end_session(loaded)
        assert until(lambda: "put the file that was served back" in caplog.text)
        assert client.get("/readyz").status_code == 503
        (folder / "tiny.onnx").write_bytes(served)
        assert until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/models/tiny").json()["digest"] == digest


def test_an_operator_may_revive_a_dead_model_with_another_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.inference.models.REVIVE_EVERY_S", 60)
    settings = Settings(models=folder, device="cpu", threads=1)
    loaded = models.load(settings)
    with loopback(create_app(settings, loaded)) as client:
        onnx_models.save(folder / "tiny.onnx", brightest=1)
        end_session(loaded)
        assert until(lambda: client.get("/readyz").status_code == 503)
        assert until(lambda: client.post("/models/tiny/reload").status_code == 200)
        assert until(lambda: client.get("/readyz").status_code == 200)


@pytest.mark.parametrize(
    ("flag", "values"),
    [("--default-model", {"default_model": "tyni"}), ("--quality", {"quality": ("tiny", "tyni")})],
)
def test_a_setting_that_names_no_model_is_named(
    folder: Path, flag: str, values: dict[str, Any]
) -> None:
    """The message has the flag, the wrong name and the right ones."""
    settings = Settings(models=folder, device="cpu", threads=1, **values)
    with pytest.raises(StartupError, match=rf"^{flag}: there is no model 'tyni'.*: tiny$"):
        models.load(settings)


@pytest.mark.slow
@pytest.mark.parametrize("gpus", ["0,0", "-1", "", "one"])
def test_a_list_of_gpus_that_makes_no_sense_is_refused(gpus: str) -> None:
    with pytest.raises(ValidationError, match="gpus"):
        Settings.model_validate({"gpus": gpus})


def live_sessions() -> int:
    """Sessions that hold memory, with Python's cycle collector switched off."""
    # By type: `isinstance` asks objects of other libraries for their class, and some of them warn.
    return sum(issubclass(type(each), ort.InferenceSession) for each in gc.get_objects())


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Python's cycle collector is off: in a real service it may not run for minutes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.slow
@pytest.mark.usefixtures("uncollected")
def test_a_model_that_was_replaced_gives_its_memory_back(folder: Path) -> None:
    before = live_sessions()
    with serving(folder) as client:
        for turn in range(4):
            onnx_models.save(folder / "tiny.onnx", brightest=1 + turn % 2)
            assert client.post("/models/tiny/reload").status_code == 200
        assert until(lambda: live_sessions() == before + 1)


@pytest.mark.slow
@pytest.mark.usefixtures("uncollected")
def test_a_model_that_does_not_take_over_gives_its_memory_back(folder: Path) -> None:
    """The same file again, a file with another digest, and a file that does not run."""
    before = live_sessions()
    with serving(folder) as client:
        assert client.post("/models/tiny/reload").json()["changed"] is False
        assert client.post("/models/tiny/reload?digest=" + "0" * 64).status_code == 409
        wrong = InputSize(policy="fixed", height=7, width=7, pad=(0, 0, 0))
        metadata = {METADATA_KEY: onnx_models.contract(input=wrong).model_dump_json()}
        onnx_models.save(folder / "tiny.onnx", metadata)
        assert client.post("/models/tiny/reload").status_code == 409
        assert until(lambda: live_sessions() == before + 1)


@pytest.mark.slow
@pytest.mark.usefixtures("uncollected")
def test_a_model_is_freed_when_its_last_request_is_answered_and_not_before(folder: Path) -> None:
    before = live_sessions()
    held = Held(Settings(models=folder, device="cpu", threads=1))
    with loopback(create_app(held.settings, held.models)) as client:
        held.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, client, BODY)
            assert held.entered.wait(10)
            onnx_models.save(folder / "tiny.onnx", brightest=1)
            assert client.post("/models/tiny/reload").json()["changed"] is True
            assert brightest(client) == 1
            assert live_sessions() == before + 2
            held.gate.set()
            assert opened(answer.result().content).max() == 2
        assert until(lambda: live_sessions() == before + 1)


@contextmanager
def asking(ask: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let a client send one request after another in a thread of its own."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asker = pool.submit(ask, over)
        try:
            yield
        finally:
            over.set()
        asker.result()


def idle_rss_mib(pid: int) -> float:
    """Return the memory of a service without requests, once it has freed what it will free."""
    readings = [vitals.read(pid).rss_mib]
    while len(readings) < 5 or readings[-1] < readings[-5] - 1:
        time.sleep(0.5)
        readings.append(vitals.read(pid).rss_mib)
    return readings[-1]


@pytest.mark.slow
def test_reloading_the_bundled_model_again_and_again_does_not_grow_the_process(
    tmp_path: Path,
) -> None:
    """Two files are loaded in turn while a client sends requests without a pause.

    A leak once kept 300 MB of each; later the heap kept 5 MB of each, for small blocks in it.
    """
    (source,) = BUNDLED.glob("*.onnx")
    files = [tmp_path / "first", tmp_path / "second"]
    shutil.copy(source, files[0])
    other = onnx.load(source)
    other.metadata_props.add(key="note", value="another digest")
    onnx.save(other, files[1])
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(files[0], folder / "m.onnx")
    body = next(SAMPLES.glob("*.jpg")).read_bytes()
    statuses = Counter[int]()
    with running(folder) as (url, process), httpx.Client(base_url=url, timeout=60) as client:

        def ask(over: threading.Event) -> None:
            while not over.is_set():
                answer = httpx.post(f"{url}/segment", content=body, headers=JPEG, timeout=60)
                statuses[answer.status_code] += 1

        def reload_twice() -> None:
            for file in reversed(files):
                shutil.copy(file, folder / "new")
                (folder / "new").replace(folder / "m.onnx")
                assert client.post("/models/m/reload").json()["changed"] is True
                time.sleep(0.3)

        def idle_after_reloads() -> float:
            with asking(ask):
                reload_twice()
                reload_twice()
            return idle_rss_mib(process.pid)

        before = [idle_after_reloads() for _ in range(2)]
        after = [idle_after_reloads() for _ in range(3)]
    assert set(statuses) == {200}
    assert min(after) - max(before) < 100  # the heap alone varies by as much from time to time


@pytest.mark.slow
def test_a_link_that_leads_nowhere_does_not_stop_the_watch(folder: Path) -> None:
    with serving(folder, watch_models_s=0.05) as client:
        (folder / "lost.onnx").symlink_to(folder / "nowhere")
        time.sleep(0.2)
        onnx_models.save(folder / "tiny.onnx", brightest=1)
        assert until(lambda: brightest(client) == 1)
        onnx_models.save(folder / "nowhere")
        assert until(lambda: client.get("/models/lost").status_code == 200)


@pytest.mark.slow
def test_a_fifo_is_refused_and_holds_nothing_up(folder: Path) -> None:
    """Reading a FIFO would never end, and SIGTERM would have to wait too."""
    with running(folder, "--watch-models-s", "0.05") as (url, process):
        os.mkfifo(folder / "pipe.onnx")
        answer = httpx.post(f"{url}/models/pipe/reload", timeout=20)
        while answer.status_code == 503:  # the watch is just trying the same file
            answer = httpx.post(f"{url}/models/pipe/reload", timeout=20)
        assert (answer.status_code, answer.json()["code"]) == (409, "model-unusable")
        assert "not a regular file" in answer.json()["detail"]
        onnx_models.save(folder / "tiny.onnx", brightest=1)
        assert until(lambda: httpx.post(f"{url}/models/tiny/reload").status_code == 200)
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_weights_in_another_file_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """ONNX Runtime would read them from the working directory, and no digest covers them."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load(folder / "tiny.onnx")
    (red,) = [each for each in model.graph.initializer if each.name == "red"]
    (tmp_path / "weights").write_bytes(red.int32_data[0].to_bytes(4, "little"))
    red.ClearField("int32_data")
    red.data_location = onnx.TensorProto.EXTERNAL
    red.external_data.add(key="location", value="weights")
    if where == "constant":
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["red"], value=red))
        model.graph.initializer.remove(red)
    with serving(folder) as client:
        (folder / "tiny.onnx").write_bytes(model.SerializeToString())
        answer = client.post("/models/tiny/reload")
        assert (answer.status_code, answer.json()["code"]) == (409, "model-unusable")
        assert "another file" in answer.json()["detail"]
        # Even if our check misses the reference, ONNX Runtime finds no such file.
        monkeypatch.setattr("service.inference.engine.EXTERNAL", b"never there")
        assert client.post("/models/tiny/reload").status_code == 409


@pytest.mark.slow
def test_one_reload_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, gate = threading.Event(), threading.Event()
    load = models.load_engines

    def slow(*given: Any) -> Any:
        entered.set()
        assert gate.wait(20)
        return load(*given)

    with serving(folder) as client, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(models, "load_engines", slow)
        first = pool.submit(client.post, "/models/tiny/reload")
        assert entered.wait(20)
        second = client.post("/models/tiny/reload")
        assert (second.status_code, second.json()["code"]) == (503, "overloaded")
        assert int(second.headers["retry-after"]) >= 1
        gate.set()
        assert first.result().status_code == 200
