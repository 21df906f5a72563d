from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from service.client.errors import ManifestError, UsageError
from service.client.manifest import SCHEMA_VERSION, Manifest
from service.client.outputs import write_files
from service.client.plan import stems
from service.client.records import DONE, PENDING, ClassPixels, Origin

ORIGIN = Origin(size=3, mtime_ns=5, sha256="s", model="light", model_digest="d", max_side=None)


def test_finished_photo_is_remembered_with_all_it_was_made_from(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m") as manifest:
        stem = manifest.claim("a/b.jpg", "/x/a/b.jpg", stems("a/b.jpg"))
        manifest.finish("a/b.jpg", ORIGIN, {"a/b.mask.png": 9}, [ClassPixels(8, "cat", 7)])
    with Manifest(tmp_path / "m") as manifest:
        row = manifest.get("a/b.jpg")
        assert row is not None
        assert (row.stem, row.status, row.outputs) == (stem, DONE, {"a/b.mask.png": 9})
        assert (row.size, row.mtime_ns, row.sha256, row.model_digest) == (3, 5, "s", "d")
        assert row.classes == (ClassPixels(8, "cat", 7),)
        assert manifest.run == row.run + 1


def test_claimed_photo_is_pending_until_it_is_finished(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m") as manifest:
        manifest.claim("a.jpg", "/a.jpg", stems("a.jpg"))
    with Manifest(tmp_path / "m") as manifest:
        assert manifest.counts() == {PENDING: 1}


def test_stem_stays_the_same_over_runs_and_belongs_to_one_photo(tmp_path: Path) -> None:
    for _ in range(2):
        with Manifest(tmp_path / "m") as manifest:
            names = ("a.jpg", "a.png", "A.PNG", "a.png.gif")
            given = [manifest.claim(name, f"/{name}", stems(name)) for name in names]
        assert given == ["a", "a.png", "A.PNG~2", "a.png.gif"]


def test_a_name_near_the_file_systems_limit_gets_a_shorter_stem(tmp_path: Path) -> None:
    names = [f"x/{'猫' * 80}{end}.jpg" for end in "ab"]
    with Manifest(tmp_path / "m") as manifest:
        first, second = (manifest.claim(name, f"/{name}", stems(name)) for name in names)
    assert first != second
    for stem in (first, second):
        assert stem.startswith("x/猫猫")
        written = write_files(tmp_path, stem, {"probabilities.npz": b"1"})
        assert (tmp_path / next(iter(written))).read_bytes() == b"1"


def test_redone_photo_has_only_its_new_pixel_counts(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m") as manifest:
        manifest.claim("a.jpg", "/a.jpg", stems("a.jpg"))
        manifest.finish("a.jpg", ORIGIN, {}, [ClassPixels(0, "background", 1)])
        manifest.finish("a.jpg", ORIGIN, {}, [ClassPixels(8, "cat", 2)])
        assert manifest.classes() == [(8, "cat", 2, 1)]


def test_failures_are_those_of_this_run(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m") as manifest:
        manifest.claim("a.jpg", "/a.jpg", stems("a.jpg"))
        manifest.fail("a.jpg", ORIGIN, "broken", rejected=True)
        assert list(manifest.failures()) == [("a.jpg", "rejected", "broken")]
    with Manifest(tmp_path / "m") as manifest:
        assert list(manifest.failures()) == []


@pytest.mark.slow
def test_second_writer_is_told_that_another_client_is_writing(tmp_path: Path) -> None:
    with (
        Manifest(tmp_path / "m"),
        pytest.raises(ManifestError, match="another client is writing"),
    ):
        Manifest(tmp_path / "m")


def test_file_that_is_not_a_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"no database at all" * 100)
    with pytest.raises(ManifestError, match="not a database"):
        Manifest(tmp_path / "m")


def test_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "m")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ManifestError, match="version 99"):
        Manifest(tmp_path / "m")


UNDO = {  # from a version back to the one before
    4: "ALTER TABLE pixels DROP COLUMN regions;",
    3: "ALTER TABLE photos DROP COLUMN is_counted; ALTER TABLE pixels DROP COLUMN confidence;"
    " DROP TABLE classes;",
    2: "ALTER TABLE photos DROP COLUMN options;",
}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_manifest_of_an_earlier_version_is_read_and_converted(tmp_path: Path, version: int) -> None:
    """Reading does not change the file; the next run converts it to this version."""
    path = tmp_path / "m"
    with Manifest(path) as manifest:
        for name in ("a.jpg", "b.jpg"):
            manifest.claim(name, f"/{name}", stems(name))
        manifest.finish("a.jpg", ORIGIN, {"a.mask.png": 9}, [ClassPixels(8, "cat", 7)])
        manifest.finish("b.jpg", ORIGIN, {})
    database = sqlite3.connect(path)
    for each in range(SCHEMA_VERSION, version, -1):
        database.executescript(f"{UNDO[each]} PRAGMA user_version = {each - 1};")
    database.close()
    before = path.read_bytes()
    for read_only in (True, False, True):
        with Manifest(path, read_only=read_only) as manifest:
            counted, other = manifest.records()
            assert (counted.outputs, counted.status) == ({"a.mask.png": 9}, DONE)
            assert (counted.classes, other.classes) == ((ClassPixels(8, "cat", 7),), None)
            assert manifest.class_names() == {8: "cat"}
        if read_only and before:
            assert path.read_bytes() == before
        before = b""  # from here on it has changed
    with Manifest(path) as manifest:
        manifest.claim("a.jpg", "/a.jpg", stems("a.jpg"))
        manifest.finish("a.jpg", replace(ORIGIN, options="fit=sliding"), {}, [])
        row = manifest.get("a.jpg")
        assert row is not None
        assert (row.options, row.classes) == ("fit=sliding", ())


def test_every_class_of_the_model_is_known_and_those_of_an_earlier_one(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m") as manifest:
        manifest.set_classes(["background", "dog", "tree"])
        manifest.claim("a.jpg", "/a.jpg", stems("a.jpg"))
        manifest.finish("a.jpg", ORIGIN, {}, [ClassPixels(2, "tree", 7), ClassPixels(8, "cow", 1)])
        manifest.set_classes(["background", "cat"])
        assert manifest.class_names() == {0: "background", 1: "cat", 2: "tree", 8: "cow"}


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no manifest"):
        Manifest(tmp_path / "m", read_only=True)
    assert list(tmp_path.iterdir()) == []
