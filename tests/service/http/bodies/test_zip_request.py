"""A ZIP of photos as the body, from ordinary and from hostile writers."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service import onnx_models
from tests.service.web import opened, photo, png, serving

LIMIT = 300_000


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    with serving(folder, max_body_bytes=LIMIT, max_files=4) as client:
        yield client


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def ask(client: TestClient, body: bytes, **query: Any) -> Any:
    kind = {"Content-Type": "application/zip"}
    return client.post("/segment", content=body, headers=kind, params=query)


def test_a_zip_gives_what_a_form_of_the_same_photos_gives(client: TestClient) -> None:
    files = {f"{name}.png": png(photo(seed=seed)) for seed, name in enumerate(("a", "b"))}
    form = client.post("/segment", files=[("file", each) for each in files.items()])
    assert ask(client, zipped(files)).content == form.content
    assert ask(client, zipped(files, zipfile.ZIP_STORED)).content == form.content


def test_a_single_photo_in_a_zip_gives_a_zip(client: TestClient) -> None:
    answer = ask(client, zipped({"folder/cat.png": png(photo())}), output="mask,json")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["results.json", "cat.mask.png", "cat.result.json"]
        (result,) = json.loads(archive.read("results.json"))["results"]
        mask = opened(archive.read("cat.mask.png"))
    assert (result["file"], result["status"]) == ("folder/cat.png", 200)
    assert (mask == onnx_models.expected(photo())).all()


def test_files_that_systems_add_are_ignored_and_other_files_fail_alone(client: TestClient) -> None:
    files = {"a.png": png(photo()), "notes.txt": b"notes", ".DS_Store": b"x", "Thumbs.db": b"x"}
    answer = ask(client, zipped(files | {"__MACOSX/._a.png": b"x", "sub/": b""}))
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        results = json.loads(archive.read("results.json"))["results"]
    assert [(each["file"], each["status"]) for each in results] == [
        ("a.png", 200),
        ("notes.txt", 400),
    ]


@pytest.mark.skipif(shutil.which("zip") is None, reason="the program zip is not installed")
def test_a_zip_of_the_usual_program_is_read(client: TestClient, tmp_path: Path) -> None:
    """Info-ZIP writes extra fields, and entries for folders."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(png(photo()))
    subprocess.run(["zip", "-qr", "all.zip", "photos"], cwd=tmp_path, check=True)
    assert ask(client, (tmp_path / "all.zip").read_bytes()).status_code == 200


def bomb() -> bytes:
    return zipped({"a.bmp": bytes(LIMIT + 1)})


def lying_bomb() -> bytes:
    """Declares 10 bytes and unpacks to many."""
    data = bytearray(zipped({"a.bmp": bytes(200_000)}))
    for signature, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        start = data.find(signature) + at
        data[start : start + 4] = (10).to_bytes(4, "little")
    return bytes(data)


def long_directory() -> bytes:
    data = bytearray(zipped({"a": b""}))
    at = data.rfind(b"PK\x05\x06") + 12
    data[at : at + 4] = (200_000_000).to_bytes(4, "little")
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(zipped({"a.png": png(photo())}))
    data[data.find(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "not a ZIP"),
        (b"PK\x03\x04 and so on", 400, "not a ZIP"),
        (zipped({"a.png": png(photo())})[:-30], 400, "not a ZIP"),
        (zipped({}), 400, "no files"),
        (zipped({f"{n}.png": b"x" for n in range(5)}), 400, "5 files, the limit is 4"),
        (zipped({"a.png": b"x" * 99}, zipfile.ZIP_LZMA), 400, "deflate"),
        (zipped({"a.png": b"x" * 99}, zipfile.ZIP_BZIP2), 400, "deflate"),
        (encrypted(), 400, "encrypted"),
        (lying_bomb(), 400, "broken"),
        (long_directory(), 400, "directory"),
        (bomb(), 413, "unpacks to"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_zip_is_refused(client: TestClient, body: bytes, status: int, says: str) -> None:
    answer = ask(client, body)
    assert answer.status_code == status
    assert says in answer.json()["detail"]


def test_a_changed_byte_is_noticed(client: TestClient) -> None:
    """The checksum of a stored photo is compared."""
    data = bytearray(zipped({"a.png": png(photo())}, zipfile.ZIP_STORED))
    data[200] ^= 1
    assert "CRC" in ask(client, bytes(data)).json()["detail"]
