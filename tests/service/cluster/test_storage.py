"""Files are written completely or not at all, and listings contain only photos."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="pyarrow comes with the extra `ray`")

from service.client.errors import UsageError
from service.client.inputs import Others
from service.client.outputs import PART
from service.cluster.storage import File, Place, StoredPhoto, photos, place


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder that does not exist yet, on a disk and in an object store."""
    if request.param == "memory":
        pytest.importorskip("fsspec", reason="fsspec comes with the extra `ray`")
        return place(f"memory://{uuid.uuid4().hex}/out")
    return place(str(tmp_path / "out"))


def test_what_is_written_is_read_and_listed(folder: Place) -> None:
    assert list(folder.files()) == []
    folder.write("b/c.png", b"12345")
    folder.write("a.png", b"1")
    folder.write("b/c.png", b"123")
    assert folder.read("b/c.png") == b"123"
    assert [(file.path, file.size) for file in folder.files()] == [("a.png", 1), ("b/c.png", 3)]
    assert [file.path for file in folder.files("b")] == ["b/c.png"]


def test_what_is_removed_is_gone_and_may_be_gone_already(folder: Place) -> None:
    folder.write("a.png", b"1")
    folder.remove("a.png")
    folder.remove("a.png")
    assert list(folder.files()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """The rename fails, because a folder has the file's name."""
    (tmp_path / "a.png" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"a\.png"):
        place(str(tmp_path)).write("a.png", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_only_the_leftovers_of_killed_writers_are_deleted(tmp_path: Path) -> None:
    litter, photo, named = f".a.mask.png.0123abcd{PART}", "b.png", f"mine{PART}"
    for name in (litter, photo, named):
        (tmp_path / name).write_bytes(b"1")
    folder = place(str(tmp_path))
    folder.sweep([file.path for file in folder.files()])
    assert sorted(path.name for path in tmp_path.iterdir()) == [photo, named]


def test_a_file_uri_is_the_path(tmp_path: Path) -> None:
    assert place(f"file://{tmp_path}/a%20b") == place(str(tmp_path / "a b"))


@pytest.mark.parametrize("where", ["teapot://a/b", "gs://b/k?no=option"])
def test_a_uri_that_cannot_be_used_is_a_usage_error(where: str) -> None:
    with pytest.raises(UsageError, match=where.partition("?")[0]):
        place(where)


def test_photos_of_a_disk_are_named_as_by_the_batch_client(tmp_path: Path) -> None:
    for name in ("in/a/x.jpg", "in/a/notes.txt", "in/.hidden.jpg", "in/b.PNG", "out/b.mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    _, found = photos([str(tmp_path / "in")], place(str(tmp_path / "out")))
    named = {photo.name: photo for photo in found}
    assert sorted(named) == ["a/x.jpg", "b.PNG"]
    stat = (tmp_path / "in/a/x.jpg").stat()
    source = str(tmp_path / "in/a/x.jpg")
    assert named["a/x.jpg"] == StoredPhoto("a/x.jpg", source, 3, stat.st_mtime_ns)


def test_photos_of_a_store_are_named_below_their_common_folder() -> None:
    store = f"memory://{uuid.uuid4().hex}"
    whole = place(store)
    for name in ("in/a/x.jpg", "in/a/y.txt", "in/.h/x.jpg", "in/b.png", "in/out/b.mask.png"):
        whole.write(name, b"123")
    out = place(f"{store}/in/out")
    system, found = photos([f"{store}/in"], out)
    assert [photo.name for photo in found] == ["a/x.jpg", "b.png"]
    _, single = photos([f"{store}/in/a/x.jpg", f"{store}/in/b.png"], out)
    (one, two) = single
    assert (one.name, two.name, one.size) == ("a/x.jpg", "b.png", 3)
    with system.open_input_stream(one.source) as stream:
        assert stream.read() == b"123"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", "no such object, folder or bucket"),
        ("in/b.jpg", "no such object, folder or bucket"),
        ("in/*.png", "globs are for disks"),
    ],
)
def test_an_input_that_is_not_in_its_store_is_a_usage_error(path: str, says: str) -> None:
    store = f"memory://{uuid.uuid4().hex}"
    place(store).write("in/b.png", b"123")
    with pytest.raises(UsageError, match=says):
        photos([f"{store}/in", f"{store}/{path}"], place(f"{store}/out"))


def test_other_files_of_a_store_are_counted() -> None:
    store = f"memory://{uuid.uuid4().hex}"
    for name in ("in/a.png", "in/b.gif", "in/.c.gif", "in/out/manifest/1.jsonl"):
        place(store).write(name, b"123")
    others = Others()
    _, found = photos([f"{store}/in"], place(f"{store}/in/out"), others=others)
    assert [photo.name for photo in found] == ["a.png"]
    assert others.counts == {".gif": 1}


def test_inputs_of_two_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one store"):
        photos([str(tmp_path), "memory://a"], place(str(tmp_path)))


def test_a_tar_is_refused(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "a.png").write_bytes(b"1")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    _, found = photos([str(tmp_path / "photos.tar")], place(str(tmp_path / "out")))
    with pytest.raises(UsageError, match="unpack"):
        list(found)


def test_a_file_tells_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12")
    stat = (tmp_path / "a.png").stat()
    assert list(place(str(tmp_path)).files()) == [File("a.png", 2, stat.st_mtime_ns)]
