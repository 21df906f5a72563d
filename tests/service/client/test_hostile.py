"""Whole runs against a service, inputs and a manifest that were made to do harm."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.client.cli import main
from service.client.manifest import FILE_NAME, Manifest
from service.client.transport import Client

from .flaky_server import Answer, FlakyServer, png, problem, result

QUICK = ("--give-up-after", "2", "--timeout", "1")


def run(server: FlakyServer, photos: Path, *options: str) -> int:
    return main([server.url, str(photos), "-o", str(photos.parent / "out"), *QUICK, *options])


def reasons(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    summary = json.loads(capsys.readouterr().out)
    return {failure["name"]: failure["reason"] for failure in summary["failures"]}


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def claiming(size: int) -> bytes:
    """A ZIP whose headers say that an entry of 1,001 bytes has `size` bytes."""
    archive = zipped({**BOTH, "labels.npz": bytes(1001)}, zipfile.ZIP_DEFLATED)
    return archive.replace(struct.pack("<L", 1001), struct.pack("<L", size))


MASK = png(4, 3)
BOTH = {"mask.png": MASK, "overlay.png": MASK}
LZMA = zipped(BOTH, zipfile.ZIP_LZMA)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not a PNG"),
        (b"garbage" * 100, "not a PNG"),
        (MASK[:-1], "cut"),
        (MASK[:-12], "cut"),
        (MASK[:60] + b"\xff" + MASK[61:], "damaged"),
        (MASK + b"more", "follow"),
        (b"\xff\xd8\xff" + bytes(50) + b"\xff\xd9", "not a PNG"),
        (png(5, 3), "5 x 3 pixels, not 40 x 30"),
    ],
    ids=["empty", "garbage", "no end", "no IEND", "bit", "tail", "other kind", "size"],
)
def test_an_incomplete_mask_is_a_failure_and_is_not_written(
    server: FlakyServer,
    tmp_path: Path,
    body: bytes,
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "cat.jpg")
    server.misbehave = lambda request, nth: (
        Answer(200, body, "image/png") if request.path == "/segment" else None
    )
    assert run(server, tmp_path / "cat.jpg", "--output", "mask", "--json") == 1
    assert says in reasons(capsys)["cat.jpg"]
    assert not list(tmp_path.rglob("*.mask.png"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (zipped(BOTH).replace(b"IDAT", b"IDAR"), "CRC"),
        (LZMA, "not compressed by deflate"),
        (LZMA[:40] + bytes(20) + LZMA[60:], "ZIP"),
        (claiming(1 << 30), "unpacks to"),
        (zipped({f"{n}.png": b"" for n in range(200)}), "200 entries"),
        (zipped({**BOTH, "overlay.png": b""}), "output=overlay is not usable"),
    ],
    ids=["crc", "lzma", "broken lzma", "bomb", "entries", "empty entry"],
)
def test_an_invalid_zip_is_a_failure(
    server: FlakyServer, photos: Path, body: bytes, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.misbehave = lambda request, nth: (
        Answer(200, body, "application/zip") if request.body == b"cat.jpg" else None
    )
    assert run(server, photos, "--json") == 1
    failures = reasons(capsys)
    assert list(failures) == ["cat.jpg"]
    assert says in failures["cat.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, MASK * 1000, "image/png", is_endless=True),
        Answer(200, MASK, "image/png", {"Content-Encoding": "gzip"}),
        Answer(200, MASK, "image/png", drip_s=0.2),
        Answer(500, b"x" * 10_000, "text/html", is_endless=True),
    ],
    ids=["endless", "compressed", "a byte at a time", "endless error"],
)
def test_an_endless_answer_is_given_up_in_time(
    server: FlakyServer, photos: Path, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client gives up endless answers at its limit of bytes, and a slow one at its timeout."""
    server.misbehave = lambda request, nth: answer if request.body == b"cat.jpg" else None
    began = time.monotonic()
    assert run(server, photos, "--output", "json,mask", "--json") == 1
    assert list(reasons(capsys)) == ["cat.jpg"]
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_slow_answer_ends_the_blocking_client_too(server: FlakyServer) -> None:
    server.misbehave = lambda request, nth: Answer(200, b"{}", drip_s=0.3)
    began = time.monotonic()
    with Client(server.url, timeout_s=0.5) as client:
        assert not client.ready()
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_only_regular_files_of_a_plausible_size_are_read(
    server: FlakyServer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(photos / "pipe.jpg")
    (photos / "zero.jpg").symlink_to("/dev/zero")
    with (photos / "huge.jpg").open("wb") as file:
        file.truncate(6 << 30)
    assert run(server, photos, "--json") == 1
    failures = reasons(capsys)
    assert {name: failures[name].rpartition(": ")[2] for name in failures} == {
        "pipe.jpg": "not a regular file",
        "zero.jpg": "not a regular file",
        "huge.jpg": "larger than any photo (more than 512 MiB)",
    }


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def info(name: str, **fields: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


@pytest.mark.slow
def test_a_tar_member_of_six_gigabytes_is_not_read(
    server: FlakyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The size may be that of a photo, or only be declared in the archive's header."""
    path = tar_of(tmp_path / "photos.tar", [(info("a.jpg"), b"a")])
    for name, kind in (("huge.jpg", tarfile.REGTYPE), ("long", tarfile.GNUTYPE_LONGNAME)):
        member = info(name, size=6 << 30, type=kind)
        whole = path.with_name(f"{name}.tar")
        with whole.open("wb") as file:
            file.write(path.read_bytes()[:1024] + member.tobuf(tarfile.GNU_FORMAT))
            file.truncate(7 << 30)
        assert run(server, whole, "--json") == 1
        (reason,) = reasons(capsys).values()
        assert "larger than any photo" in reason or f"a header of {6 << 30} bytes" in reason


@pytest.mark.slow
def test_odd_times_and_names_in_a_tar_do_no_harm(server: FlakyServer, tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    members = [
        (info("a.jpg", pax_headers={"mtime": "1e999"}), b"a"),
        (info("b.jpg", pax_headers={"mtime": "nan"}), b"b"),
        (info("c.jpg", mtime=2**62), b"c"),
        (info("../../up\x1b[2J.jpg"), b"d"),
    ]
    tar_of(path, members)
    assert run(server, path) == 0
    names = sorted(file.name for file in (tmp_path / "out").rglob("*.mask.png"))
    assert names == ["a.mask.png", "b.mask.png", "c.mask.png", r"up\x1b[2J.mask.png"]


@pytest.mark.slow
def test_a_tar_that_is_damaged_in_its_middle_is_a_failure(
    server: FlakyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tar_of(tmp_path / "photos.tar", [(info(f"{n}.jpg"), b"x") for n in range(3)])
    content = bytearray(path.read_bytes())
    content[1024:1032] = b"damaged!"
    path.write_bytes(content)
    assert run(server, path, "--json") == 1
    assert "cannot be read to its end" in reasons(capsys)["photos.tar"]


@pytest.mark.slow
def test_a_photo_with_a_time_in_a_far_century_is_segmented(
    server: FlakyServer, photos: Path
) -> None:
    """Its time in nanoseconds has more than the 64 bits of SQLite."""
    os.utime(photos / "cat.jpg", (10_000_000_000, 10_000_000_000))
    assert run(server, photos) == 0


@pytest.mark.slow
def test_a_zero_byte_in_a_list_is_a_failure_of_that_line(
    server: FlakyServer,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos}/cat.jpg\n/x\0y.jpg\n"))
    out = photos.parent / "out"
    assert main([server.url, "-", "-o", str(out), "--base", str(photos), "--json"]) == 1
    assert list(reasons(capsys)) == [r"x\x00y.jpg"]


def tamper(out: Path, statement: str, *values: object) -> None:
    database = sqlite3.connect(out / FILE_NAME)
    with database:
        database.execute(statement, values)
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["../victim.txt", "a/../../victim.txt", "..\\victim.txt"])
def test_a_manifest_that_names_files_outside_of_out_is_refused(
    server: FlakyServer, photos: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, victim = photos.parent / "out", photos.parent / "victim.txt"
    victim.write_text("precious")
    run(server, photos)
    tamper(out, "UPDATE photos SET outputs = ?", json.dumps({path: 8}))
    (photos / "cat.jpg").write_bytes(b"another cat")
    assert run(server, photos) == 1
    assert "leads out of OUT" in capsys.readouterr().err
    assert main(["report", str(out)]) == 1
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("stem", ["../victim", "/victim", "x/../../victim", ".."])
def test_a_manifest_cannot_have_results_written_outside_of_out(
    server: FlakyServer, photos: Path, stem: str
) -> None:
    run(server, photos / "cat.jpg")
    out = photos / "out"
    tamper(out, "UPDATE photos SET stem = ?, status = 'pending'", stem)
    assert run(server, photos / "cat.jpg") == 0
    assert not list(photos.parent.glob("**/victim.*"))
    assert (out / "cat.mask.png").is_file()


@pytest.mark.slow
def test_a_link_in_out_is_not_followed_out_of_it(
    server: FlakyServer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, elsewhere = photos.parent / "out", photos.parent / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "trip").symlink_to(elsewhere)
    (out / "inner").mkdir()
    (out / ".cat.mask.png.part").symlink_to(elsewhere / "written.png")
    assert run(server, photos, "--json") == 1
    assert {name: "outside of" in why for name, why in reasons(capsys).items()} == {
        "trip/dog.png": True,
        "trip/far/bus.webp": True,
    }
    assert list(elsewhere.iterdir()) == []
    assert (out / "cat.mask.png").read_bytes() == result("mask", b"cat.jpg")


@pytest.mark.slow
def test_a_linked_manifest_is_refused(server: FlakyServer, photos: Path) -> None:
    out, victim = photos.parent / "out", photos.parent / "victim.sqlite"
    sqlite3.connect(victim).close()
    out.mkdir()
    (out / FILE_NAME).symlink_to(victim)
    assert run(server, photos) == 1
    assert victim.stat().st_size == 0


@pytest.mark.slow
def test_an_output_folder_that_is_a_link_itself_is_fine(server: FlakyServer, photos: Path) -> None:
    (photos.parent / "disk").mkdir()
    (photos.parent / "out").symlink_to(photos.parent / "disk")
    assert run(server, photos) == 0
    assert run(server, photos) == 0


NESTED = b"[" * 200_000
ODD_PROBLEM = {"code": {"a": 1}, "detail": ["x"], "request_id": {"no": "text"}, "title": 1e9}


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, NESTED, "application/problem+json"),
        Answer(422, json.dumps(ODD_PROBLEM).encode(), "application/problem+json"),
        Answer(400, b'{"detail": "\\ud800", "request_id": "\\udfff"}', "application/problem+json"),
        Answer(400, b"\xff\xfe\x00", "text/html; charset=hex"),
        Answer(200, NESTED, "application/json"),
        Answer(200, b'{"classes": [{"id": 1e999, "name": "x", "pixels": 1}]}'),
        Answer(200, b'{"classes": [{"id": 1, "name": "x", "pixels": %d}]}' % 2**70),
        Answer(200, b'{"classes": [{"id": NaN, "name": "x", "pixels": 1}]}'),
        Answer(503, b"", headers={"Retry-After": "1e308"}),
        Answer(503, b"", headers={"Retry-After": "Mon, 99 Foo 99999 99:99:99 +9999999"}),
        Answer(503, b"", headers={"Retry-After": "9" * 400}),
    ],
    ids=lambda answer: f"{answer.status} {answer.body[:12]!r} {str(answer.headers)[:40]}",
)
def test_one_odd_answer_fails_only_that_photo(
    server: FlakyServer, photos: Path, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.misbehave = lambda request, nth: answer if request.body == b"cat.jpg" else None
    assert run(server, photos, "--output", "json", "--report", "--json") == 1
    assert list(reasons(capsys)) == ["cat.jpg"]


@pytest.mark.slow
def test_a_disk_that_is_full_for_the_manifest_ends_the_run_with_a_message(
    server: FlakyServer,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SQLite's own limit of pages stands in for the disk's: the error is the same."""
    opened = Manifest._open

    def full(manifest: Manifest, path: Path, read_only: bool) -> None:
        opened(manifest, path, read_only)
        manifest._db.execute("PRAGMA max_page_count = 1")

    for number in range(200):
        (photos / f"{'long' * 30}{number}.jpg").write_bytes(b"%d" % number)
    monkeypatch.setattr(Manifest, "_open", full)
    assert run(server, photos) == 1
    assert "the disk is full" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(server, photos) == 0


@pytest.mark.slow
def test_control_characters_never_reach_the_terminal(
    server: FlakyServer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\u202egnp.\x9b"
    (photos / f"{evil}.jpg").write_bytes(b"evil name")
    server.misbehave = lambda request, nth: (
        problem(400, evil, evil) if request.body == b"cat.jpg" else None
    )
    run(server, photos, "--dry-run")
    assert run(server, photos) == 1
    run(server, photos)
    assert main(["report", str(photos.parent / "out")]) == 0
    said = capsys.readouterr()
    assert r"\x1b]0;owned\x07" in said.out
    harmless = {"\n"}
    assert {c for c in said.out + said.err if not c.isprintable()} <= harmless


def test_no_cell_of_the_table_is_a_formula(server: FlakyServer, photos: Path) -> None:
    names = ["=cmd|' C calc'!A0.jpg", "+1.jpg", "-2.jpg", "@SUM(1).jpg"]
    for name in names:
        (photos / name).write_bytes(name.encode())
    classes = [{"id": 5, "name": "=HYPERLINK(1)", "pixels": 12}]
    server.misbehave = lambda request, nth: (
        Answer(200, json.dumps({"classes": classes}).encode())
        if request.path == "/segment"
        else None
    )
    assert run(server, photos, "--output", "json", "--report") == 0
    table = (photos.parent / "out" / "report.csv").read_text()
    cells = [cell for row in csv.reader(io.StringIO(table)) for cell in row]
    assert not [cell for cell in cells if cell[:1] in set("=+-@")]
    assert {f"'{name}" for name in names} | {"'=HYPERLINK(1)"} <= set(cells)
