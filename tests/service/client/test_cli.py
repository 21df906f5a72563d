from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from service.client.cli import main

from .flaky_server import Answer, FlakyServer, problem


@pytest.mark.parametrize(
    "command", [pytest.param("service", marks=pytest.mark.slow), "service.client"]
)
def test_version_is_that_of_the_installed_package(command: str) -> None:
    run = [sys.executable, "-m", command, "--version"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    try:
        assert shown == f"deeplab {metadata.version('deeplab')}\n"
    except metadata.PackageNotFoundError:
        assert shown == "deeplab unknown\n"


def test_dry_run_names_what_would_be_sent_and_touches_nothing(
    server: FlakyServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [server.url, str(photos), "-o", str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.split() == ["cat.jpg", "trip/dog.png", "trip/far/bus.webp"]
    assert not (tmp_path / "out").exists()
    assert not server.segmented()


def test_dry_run_knows_what_is_done(
    server: FlakyServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [server.url, str(photos), "-o", str(tmp_path / "out")]
    main(command)
    (photos / "cat.jpg").write_bytes(b"other")
    capsys.readouterr()
    main([*command, "--dry-run", "--json"])
    tally = json.loads(capsys.readouterr().out)
    assert (tally["send"], tally["skip"]) == (1, 2)
    main([*command, "--dry-run"])
    assert "1 to send, 2 complete already, 0 rejected before\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["localhost:8000", "."], "write it as http://HOST:PORT"),
        (["http://127.0.0.1:9", "no-such-folder"], "no such file or folder"),
        (["http://127.0.0.1:9", ".", "--output", "masks"], "choose from mask, color"),
    ],
)
def test_wrong_call_exits_2_and_says_what_to_change(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [["--concurrency", "0"], ["--max-side", "x"], ["--max-failures", "0"]]
)
def test_number_out_of_range_exits_2(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["http://127.0.0.1:9", ".", "-o", str(tmp_path), *options])
    assert caught.value.code == 2


def test_unknown_model_exits_2_and_names_the_known_ones(
    server: FlakyServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([server.url, str(photos), "-o", str(tmp_path / "out"), "--model", "big"]) == 2
    assert "the service has light" in capsys.readouterr().err


@pytest.mark.slow
def test_service_that_never_starts_exits_1(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["http://127.0.0.1:9", str(photos), "-o", str(tmp_path / "out")]
    assert main([*command, "--give-up-after", "1"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == (
        "http://127.0.0.1:9: All connection attempts failed: is the service running there? "
        "(trying for 1 s: --give-up-after)"
    )
    assert told[-1].startswith("deeplab-client: http://127.0.0.1:9: no answer after ")
    assert told[-1].endswith("is the service running there?")


def test_unknown_host_exits_2_without_a_second_try(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names in .invalid never exist (RFC 6761), but only a name server can confirm that."""
    try:
        socket.getaddrinfo("photos.invalid", 80)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            pytest.skip("no name server answers here")
    began = time.monotonic()
    command = ["http://me:secret@photos.invalid:8000", str(photos), "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert time.monotonic() - began < 30  # by default, retries last 120 s
    told = capsys.readouterr().err
    assert told.startswith("deeplab-client: http://photos.invalid:8000: unknown host (")
    assert told.endswith(": correct the host name\n")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/foo", "GET /foo/models does not exist there: the URL has a path, /foo; write http://"),
        ("/", "GET /models does not exist there: is this the service's port"),
    ],
)
def test_url_of_another_server_exits_2(
    server: FlakyServer,
    photos: Path,
    tmp_path: Path,
    path: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.misbehave = lambda request, nth: problem(404, "not-found")
    assert main([f"{server.url}{path}", str(photos), "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert len(server.requests) == 1


def test_prefix_of_a_proxy_in_the_url_is_kept(
    server: FlakyServer, photos: Path, tmp_path: Path
) -> None:
    """The proxy answers below the prefix alone; requests that lack it get its 404."""
    command = [f"{server.url}/seg", str(photos), "-o", str(tmp_path / "out"), "--dry-run"]
    server.misbehave = lambda request, nth: (
        Answer(200, b'{"models": []}') if request.path == "/seg/models" else problem(404, "no")
    )
    assert main(command) == 0


@pytest.mark.slow
def test_client_waits_for_a_service_that_is_just_starting(
    server: FlakyServer, photos: Path, tmp_path: Path
) -> None:
    server.misbehave = lambda request, nth: (
        problem(503, "starting") if request.path == "/models" and nth <= 2 else None
    )
    assert main([server.url, str(photos), "-o", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--json"]])
def test_inputs_without_a_photo_exit_2_and_say_what_was_found(
    server: FlakyServer, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IMG_1.GIF").write_bytes(b"x")
    assert main([server.url, str(tmp_path / "in"), "-o", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("deeplab-client: no photo")  # and no progress bar
    assert f"no photo found in {tmp_path / 'in'}; 1 file left out: 1 .gif (IMG_1.GIF)" in said.err
    assert "done" not in said.out


def test_an_empty_list_exits_2(
    server: FlakyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main([server.url, "-", "-o", str(tmp_path / "out")]) == 2


def test_the_summary_names_the_files_that_were_left_out(
    server: FlakyServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [server.url, str(photos), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert "1 file left out: 1 .txt (notes.txt)" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0  # even if everything is complete
    assert json.loads(capsys.readouterr().out)["left_out"] == {".txt": 1}


def test_key_comes_from_the_environment(
    server: FlakyServer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPLAB_API_KEY", "secret")
    main([server.url, str(photos), "-o", str(tmp_path / "out")])
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer secret"}


def test_list_on_stdin_works_in_a_pipe(server: FlakyServer, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.client", server.url, "-", "-o", str(tmp_path / "out")]
    listing = f"{photos}/cat.jpg\n{photos}/trip/dog.png\n"
    done = subprocess.run(
        [*command, "--base", str(photos)], input=listing, text=True, capture_output=True, check=True
    )
    assert done.stdout.startswith("2 done")
    assert (tmp_path / "out" / "trip" / "dog.mask.png").is_file()


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["report", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert "deeplab-client" in capsys.readouterr().out.split("example")[1]


@pytest.mark.slow
def test_client_needs_httpx_alone() -> None:
    """A fresh interpreter, which cannot import the service's other libraries, runs the client."""
    program = """
import sys
for name in ("numpy", "PIL", "pydantic", "fastapi", "uvicorn", "onnxruntime", "torch", "pyarrow"):
    sys.modules[name] = None
import service.client.cli, service.client
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "fine\n"


@pytest.mark.slow
def test_missing_pillow_is_a_clear_error(photos: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["PIL"] = None
from service.client.cli import main
sys.exit(main(["http://127.0.0.1:9", {str(photos)!r}, "-o", {str(tmp_path)!r}, "--max-side", "9"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--max-side needs Pillow: pip install pillow" in done.stderr
