"""`deeplab-client jobs` and the functions behind it, against the real service."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from service.client import Client, Job, StatusError, UsageError
from service.client.cli import main
from tests.service import onnx_models
from tests.service.client.flaky_server import Answer, Request
from tests.service.client.flaky_server import running as hosting
from tests.service.processes import running
from tests.service.web import opened, photo, png

pytestmark = pytest.mark.slow

PHOTO = photo(30, 40)
BROKEN = b"\xff\xd8\xff no more of it"


def _hosted(request: Request, _nth: int) -> Answer | None:
    found = request.path.endswith(".png")
    return Answer(200, png(PHOTO), "image/png") if found else Answer(404, b"no")


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """Another server, with photos."""
    with hosting(_hosted) as server:
        yield server.url


@pytest.fixture(scope="module")
def url(host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models, jobs, inputs = (tmp_path_factory.mktemp(name) for name in ("models", "jobs", "inputs"))
    onnx_models.save(models / "tiny.onnx")
    (inputs / "scans").mkdir()
    (inputs / "scans" / "a.png").write_bytes(png(PHOTO))
    flags = ("--jobs", str(jobs), "--job-inputs", str(inputs))
    allowed = ("--allow-url-hosts", host.removeprefix("http://"))
    with running(models, *flags, *allowed) as (url, _):
        yield url


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "trip").mkdir(parents=True)
    (folder / "cat.png").write_bytes(png(PHOTO))
    (folder / "trip" / "dog.png").write_bytes(png(photo(30, 40, seed=1)))
    (folder / "notes.txt").write_text("no photo")
    return folder


def masks(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".png")}


def test_a_folder_is_packed_and_its_result_fetched_in_one_command(
    url: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.zip"
    assert main(["jobs", "submit", url, "-o", str(out), str(pictures), "--output", "mask"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}: 2 of 2 photos done\n"
    assert "1 file left out: 1 .txt" in told.err
    found = masks(out)
    assert sorted(found) == ["cat.mask.png", "dog.mask.png"]
    assert (opened(found["cat.mask.png"]) == onnx_models.expected(PHOTO)).all()
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".part")] == []


def test_photos_that_fail_are_named_and_exit_1(
    url: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "broken.jpg").write_bytes(BROKEN)
    out = tmp_path / "results.zip"
    assert main(["jobs", "submit", url, str(pictures), "-o", str(out), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["photos"], told["failed"]) == ("done", 3, 1)
    assert [each["name"] for each in told["failures"]] == ["broken.jpg"]
    assert "not an image of a known format" in told["failures"][0]["reason"]


def test_submit_prints_the_id_for_the_other_commands(
    url: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as to:
        to.write(pictures / "cat.png", "cat.png")
    assert main(["jobs", "submit", url, str(archive), "--output", "mask,json"]) == 0
    name = capsys.readouterr().out.strip()
    assert main(["jobs", "watch", url, name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 1
    assert main(["jobs", "list", url]) == 0
    assert any(
        line.startswith(f"{name}  done") and line.endswith("  1/1")
        for line in capsys.readouterr().out.splitlines()
    )
    assert main(["jobs", "fetch", url, name, "-o", str(tmp_path / "r.zip")]) == 0
    assert list(masks(tmp_path / "r.zip")) == ["cat.mask.png"]
    capsys.readouterr()
    assert main(["jobs", "cancel", url, name]) == 0
    assert main(["jobs", "watch", url, name]) == 1
    assert "404 unknown-job" in capsys.readouterr().err


def test_urls_and_paths_are_jobs_without_an_upload(
    url: str, host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text(f"# my photos\n\n{host}/a.png\n{host}/gone.jpg\n")
    of_urls = ["jobs", "submit", url, "--urls", str(tmp_path / "list.txt"), "--output", "mask"]
    assert main([*of_urls, "-o", str(tmp_path / "urls.zip")]) == 1
    assert "its server answered 404" in capsys.readouterr().out
    assert list(masks(tmp_path / "urls.zip")) == ["a.mask.png"]
    one = ["jobs", "submit", url, f"{host}/a.png", "-o", str(tmp_path / "one.zip")]
    assert main(one) == 0
    of_paths = ["jobs", "submit", url, "--output", "mask", "-o", str(tmp_path / "paths.zip")]
    assert main([*of_paths, "--paths", "scans"]) == 0
    assert masks(tmp_path / "paths.zip") == masks(tmp_path / "urls.zip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the photos"),
        (["PHOTOS", "--paths", "scans"], "exactly one of"),
        (["no-such.zip"], "no such file"),
        (["PHOTOS", "--output", "masks"], "choose from mask"),
        (["PHOTOS", "--alpha", "7"], "correct --alpha"),
        (["--paths", "../etc"], "leads out of the folder"),
        (["https://example.org/a.png"], "--allow-url-hosts"),
        (["--urls", "no-such-list"], "No such file"),
        (["PHOTOS", "-o", "PHOTOS"], "exists: name another file"),
    ],
)
def test_a_wrong_job_exits_2_and_says_what_to_change(
    url: str,
    pictures: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(pictures) if each == "PHOTOS" else each for each in arguments]
    assert main(["jobs", "submit", url, *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../models", "a/b", "", "x" * 65])
def test_an_id_that_is_none_is_refused_before_anything_is_sent(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch = ["jobs", "fetch", "http://127.0.0.1:9", name, "-o", str(tmp_path / "r.zip")]
    assert main(fetch) == 2
    assert "the id of a job" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_service_without_jobs_says_how_to_turn_them_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with running(tmp_path) as (url, _):
        assert main(["jobs", "list", url]) == 2
        assert "start the service with --jobs DIR" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nix"], ["submit"], ["watch", "http://localhost"]])
def test_an_incomplete_command_exits_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["jobs", *arguments])
    assert stopped.value.code == 2
    assert "usage: deeplab-client jobs" in capsys.readouterr().err


def test_ctrl_c_while_waiting_tells_how_to_get_the_result(
    url: str, pictures: Path, tmp_path: Path
) -> None:
    """The job goes on in the service: running the command again would make another one."""
    for number in range(100):
        (pictures / f"{number}.png").write_bytes(png(photo(30, 40, seed=number)))
    out = tmp_path / "r.zip"
    command = [sys.executable, "-m", "service.client", "jobs", "submit", url, str(pictures)]
    waiting = subprocess.Popen([*command, "-o", str(out)], stderr=subprocess.PIPE, text=True)
    assert waiting.stderr is not None
    for line in waiting.stderr:
        if line.startswith("job "):
            break
    waiting.send_signal(signal.SIGINT)
    told = waiting.stderr.read()
    waiting.stderr.close()
    if waiting.wait() == 0:
        pytest.skip("the job ended before the signal came")
    assert waiting.returncode == 130
    (fetch,) = [line for line in told.splitlines() if "jobs fetch" in line]
    assert main(fetch.partition("deeplab-client ")[2].split()) == 0
    assert len(masks(out)) == 102


def test_python_has_the_same_functions(url: str, pictures: Path, tmp_path: Path) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as to:
        to.write(pictures / "cat.png", "cat.png")
    told: list[Job] = []
    with Client(url) as client:
        job = client.submit_job(archive, output="mask", options={"mask_format": "gray"})
        assert client.watch_job(job.id, told.append).state == "done"
        assert told[-1] == client.job(job.id)
        assert job.id in [each.id for each in client.jobs()]
        out = client.fetch_job(job.id, tmp_path / "r.zip")
        with pytest.raises(UsageError, match="exists"):
            client.fetch_job(job.id, out)
        client.cancel_job(job.id)
        with pytest.raises(StatusError, match="unknown-job"):
            client.job(job.id)
        with pytest.raises(UsageError, match="one of them"):
            client.submit_job(archive, urls=["https://example.org/a.png"])
    assert (opened(masks(out)["cat.mask.png"]) == onnx_models.expected(PHOTO)).all()


def test_photos_shrink_before_they_are_packed(url: str, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png(photo(60, 80)))
    out = tmp_path / "r.zip"
    submit = ["jobs", "submit", url, str(tmp_path / "large.png"), "--max-side", "40"]
    assert main([*submit, "--output", "mask", "-o", str(out)]) == 0
    assert opened(masks(out)["large.mask.png"]).shape == (30, 40)


def test_a_list_of_urls_comes_from_a_pipe_through_the_module_too(url: str, host: str) -> None:
    command = [sys.executable, "-m", "service.client", "jobs", "submit", url, "--urls", "-"]
    done = subprocess.run(
        command, input=f"{host}/a.png\n".encode(), capture_output=True, check=True
    )
    with Client(url) as client:
        assert client.watch_job(done.stdout.decode().strip()).failed == 0


def test_an_interrupted_download_continues_with_the_real_service(
    url: str, pictures: Path, tmp_path: Path
) -> None:
    """The part that an earlier process left is not fetched again."""
    with Client(url) as client:
        job = client.submit_job(_zip(pictures), output="mask")
        client.watch_job(job.id)
        whole = client.fetch_job(job.id, tmp_path / "whole.zip").read_bytes()
        for kept in (1, len(whole) - 1, len(whole)):
            (tmp_path / f".r{kept}.zip.{job.id}.part").write_bytes(whole[:kept])
            told: list[tuple[int, int | None]] = []
            client.fetch_job(job.id, tmp_path / f"r{kept}.zip", partial(_note, told))
            assert (tmp_path / f"r{kept}.zip").read_bytes() == whole
            assert told == ([(len(whole), len(whole))] if kept < len(whole) else [])


def _note(told: list[tuple[int, int | None]], there: int, total: int | None) -> None:
    told.append((there, total))


def _zip(folder: Path) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as to:
        to.write(folder / "cat.png", "cat.png")
    path = folder.parent / "photos.zip"
    path.write_bytes(buffer.getvalue())
    return path
