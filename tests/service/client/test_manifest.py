from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from service.client.errors import ManifestError
from service.client.manifest import DONE, PENDING, ClassPixels, Manifest, Origin
from service.client.plan import stems

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
        assert manifest.pixels("a/b.jpg") == {8: 7}
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


def test_redone_photo_has_only_its_new_pixels(tmp_path: Path) -> None:
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


def test_second_writer_is_told_who_is_in_its_way(tmp_path: Path) -> None:
    with (
        Manifest(tmp_path / "m"),
        pytest.raises(ManifestError, match="another client is writing"),
    ):
        Manifest(tmp_path / "m")


def test_file_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"no database at all" * 100)
    with pytest.raises(ManifestError, match="not a database"):
        Manifest(tmp_path / "m")


def test_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "m")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ManifestError, match="version 99"):
        Manifest(tmp_path / "m")


def test_manifest_of_before_there_were_options_is_read_and_taken_over(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m") as manifest:
        manifest.claim("a.jpg", "/a.jpg", stems("a.jpg"))
        manifest.finish("a.jpg", ORIGIN, {"a.mask.png": 9}, [])
    database = sqlite3.connect(tmp_path / "m")
    database.executescript("ALTER TABLE photos DROP COLUMN options; PRAGMA user_version = 1;")
    database.close()
    for read_only in (True, False, True):
        with Manifest(tmp_path / "m", read_only=read_only) as manifest:
            row = manifest.get("a.jpg")
            assert row is not None
            assert (row.outputs, row.status, row.options) == ({"a.mask.png": 9}, DONE, "")
    with Manifest(tmp_path / "m") as manifest:
        manifest.claim("a.jpg", "/a.jpg", stems("a.jpg"))
        manifest.finish("a.jpg", replace(ORIGIN, options="fit=sliding"), {}, [])
        row = manifest.get("a.jpg")
        assert row is not None
        assert row.options == "fit=sliding"


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no manifest"):
        Manifest(tmp_path / "m", read_only=True)
    assert list(tmp_path.iterdir()) == []
