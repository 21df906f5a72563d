"""The manifest: one row per photo, in an SQLite file beside the outputs.

SQLite keeps the last commit after a kill at any moment, and finds one photo among a million
without reading the rest. A row becomes `done` only after all files of the photo are written,
so a photo whose work was interrupted is `pending`, and the next run sends it again.

The file is locked while a run writes, because two clients in one folder would repeat each
other's work. The lock ends with the process.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from service.client.errors import ManifestError, UsageError
from service.client.outputs import stays_inside
from service.client.plain import parse_json, sentence
from service.client.records import DONE, FAILED, PENDING, REJECTED, ClassPixels, Origin, Record

FILE_NAME = "manifest.sqlite"
SCHEMA_VERSION = 4

SCHEMA = """
CREATE TABLE photos (
    name TEXT PRIMARY KEY,       -- path below the inputs' base, with slashes
    source TEXT NOT NULL,        -- absolute path; "x.tar!member" in a tar
    stem TEXT NOT NULL UNIQUE COLLATE NOCASE, -- outputs are OUT/stem.mask.png and so on
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 TEXT,
    model TEXT, model_digest TEXT, max_side INTEGER,
    options TEXT NOT NULL DEFAULT '', -- of the request, as its query has them
    outputs TEXT NOT NULL DEFAULT '{}', -- JSON: file below OUT -> its size in bytes
    status TEXT NOT NULL, error TEXT, request_id TEXT,
    run INTEGER NOT NULL, finished REAL,
    is_counted INTEGER NOT NULL DEFAULT 0 -- whether `pixels` has all of its classes
);
CREATE INDEX photos_by_status ON photos (status);
CREATE TABLE pixels (
    name TEXT NOT NULL, class_id INTEGER NOT NULL, class TEXT NOT NULL, pixels INTEGER NOT NULL,
    confidence REAL, -- mean over these pixels, 0 to 1
    regions INTEGER, -- connected ones
    PRIMARY KEY (name, class_id)
) WITHOUT ROWID;
CREATE TABLE classes (class_id INTEGER PRIMARY KEY, class TEXT NOT NULL); -- of the last model
"""
UPGRADES = {  # from this version to the next
    1: "ALTER TABLE photos ADD COLUMN options TEXT NOT NULL DEFAULT '';",
    2: """
ALTER TABLE photos ADD COLUMN is_counted INTEGER NOT NULL DEFAULT 0;
UPDATE photos SET is_counted = 1 WHERE name IN (SELECT name FROM pixels);
ALTER TABLE pixels ADD COLUMN confidence REAL;
CREATE TABLE classes (class_id INTEGER PRIMARY KEY, class TEXT NOT NULL);
""",
    3: "ALTER TABLE pixels ADD COLUMN regions INTEGER;",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoRow(Record):
    """A photo's row."""

    run: int  # the last run with this photo


COLUMNS = (
    *("name", "source", "stem", "size", "mtime_ns", "sha256", "model", "model_digest"),
    *("max_side", "options", "status", "error", "request_id", "outputs", "run", "is_counted"),
)


class Manifest:
    """The manifest of one output folder. Safe to use from several threads."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open or create the manifest; raises ManifestError if it is in use, broken or too new.

        With `read_only`, a file that is missing raises UsageError instead of being created.
        """
        self._lock = threading.RLock()
        self.run = 0
        if read_only and not path.is_file():
            raise UsageError(f"{path}: no manifest there; is this the OUT of an earlier run?")
        if path.is_symlink():
            raise ManifestError(f"{path} is a link: the manifest must be in OUT itself")
        self._path = path
        try:
            self._db = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
            try:
                self._open(path, read_only)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise ManifestError(_explain(path, error)) from error

    def _open(self, path: Path, read_only: bool) -> None:
        self._db.isolation_level = None  # transactions are written out below
        self._db.execute("PRAGMA trusted_schema = OFF")  # the file may come from someone else
        if not read_only:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            # A power cut may undo the last commits: those photos are sent again.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("BEGIN EXCLUSIVE")  # takes the lock, which then stays
            self._db.execute("COMMIT")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0 and not read_only:
            self._db.executescript(
                f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version in UPGRADES:
            self._upgrade(version, read_only)
        elif version != SCHEMA_VERSION:
            raise ManifestError(
                f"{path}: version {version}, this client reads {SCHEMA_VERSION}; use another OUT"
            )
        (last,) = self._db.execute("SELECT coalesce(max(run), 0) FROM photos").fetchone()
        self.run = last + 1

    def _upgrade(self, version: int, read_only: bool) -> None:
        if read_only:  # a copy in memory; the file stays as it is
            copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            self._db.backup(copy)
            self._db.close()
            self._db = copy
        steps = " ".join(UPGRADES[each] for each in range(version, SCHEMA_VERSION))
        self._db.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, name: str) -> PhotoRow | None:
        """Return the row of a photo, or None."""
        rows = self._select(f"SELECT {', '.join(COLUMNS)} FROM photos WHERE name = ?", name)
        return next(map(self._row, list(rows)), None)

    def records(self) -> Iterator[Record]:
        """Return the row of every photo, sorted by name."""
        rows = self._select(f"SELECT {', '.join(COLUMNS)} FROM photos ORDER BY name")
        yield from map(self._row, rows)

    def set_classes(self, names: Iterable[str]) -> None:
        """Store all classes of this run's model, by id: a report has a column for each."""
        with self._access(), self._transaction():
            self._db.execute("DELETE FROM classes")
            self._db.executemany("INSERT INTO classes VALUES (?, ?)", enumerate(names))

    def class_names(self) -> dict[int, str]:
        """Return all classes of the model and of photos by earlier models, by id."""
        return dict(
            self._select(
                "SELECT class_id, class FROM classes UNION"
                " SELECT class_id, min(class) FROM pixels"
                " WHERE class_id NOT IN (SELECT class_id FROM classes)"
                " GROUP BY class_id ORDER BY class_id"
            )
        )

    def claim(self, name: str, source: str, stems: Iterable[str]) -> str:
        """Mark a photo as pending in this run; return its stem, which is the same in every run.

        A new photo gets the first of `stems` that no other photo holds.
        """
        with self._access():
            changed = self._db.execute(
                "UPDATE photos SET source = ?, status = ?, error = NULL, run = ? WHERE name = ?"
                " RETURNING stem",
                (source, PENDING, self.run, name),
            ).fetchone()
            if changed is not None and stays_inside(str(changed[0])):
                return str(changed[0])
            stem = next(stem for stem in stems if not self._is_taken(stem))
            if changed is not None:
                self._db.execute("UPDATE photos SET stem = ? WHERE name = ?", (stem, name))
                return stem
            self._db.execute(
                "INSERT INTO photos (name, source, stem, size, mtime_ns, status, run)"
                " VALUES (?, ?, ?, -1, 0, ?, ?)",
                (name, source, stem, PENDING, self.run),
            )
            return stem

    def finish(
        self,
        name: str,
        origin: Origin,
        outputs: dict[str, int],
        pixels: Iterable[ClassPixels] | None = None,
        request_id: str | None = None,
    ) -> None:
        """Record a complete result. `pixels` None: not counted; valid earlier counts stay."""
        entries = [
            (name, entry.class_id, entry.name, entry.pixels, entry.confidence, entry.regions)
            for entry in pixels or ()
        ]
        with self._access(), self._transaction():
            if pixels is not None or not self._is_from(name, origin):
                self._forget_pixels(name)
            self._settle(name, DONE, origin, request_id)
            if pixels is not None:
                self._db.execute("UPDATE photos SET is_counted = 1 WHERE name = ?", (name,))
            self._db.execute(
                "UPDATE photos SET error = NULL, outputs = ? WHERE name = ?",
                (json.dumps(outputs), name),
            )
            self._db.executemany("INSERT INTO pixels VALUES (?, ?, ?, ?, ?, ?)", entries)

    def fail(
        self,
        name: str,
        origin: Origin,
        error: str,
        *,
        rejected: bool,
        request_id: str | None = None,
    ) -> None:
        """Record a failure with its reason, and forget the files of an earlier result."""
        with self._access(), self._transaction():
            self._forget_pixels(name)
            self._settle(name, REJECTED if rejected else FAILED, origin, request_id)
            self._db.execute(
                "UPDATE photos SET error = ?, outputs = '{}' WHERE name = ?", (error, name)
            )

    def touch(self, name: str, mtime_ns: int) -> None:
        """Record a new modification time of an unchanged photo."""
        with self._access():
            self._db.execute("UPDATE photos SET mtime_ns = ? WHERE name = ?", (mtime_ns, name))

    def see(self, name: str) -> None:
        """Record that an unchanged row is part of this run."""
        with self._access():
            self._db.execute("UPDATE photos SET run = ? WHERE name = ?", (self.run, name))

    def counts(self) -> dict[str, int]:
        """Return status -> number of photos, over all runs."""
        return dict(self._select("SELECT status, count(*) FROM photos GROUP BY status"))

    def failures(self) -> Iterator[tuple[str, str, str]]:
        """Yield name, status and reason of every photo of this run without a result, by name."""
        yield from self._select(
            "SELECT name, status, error FROM photos"
            " WHERE run = ? AND status IN ('rejected', 'failed') ORDER BY name",
            self.run,
        )

    def classes(self) -> list[tuple[int, str, int, int]]:
        """Return class id, name, pixels and photos over all counted photos, by id."""
        return list(
            self._select(
                "SELECT class_id, min(class), sum(pixels), count(*) FROM pixels"
                " GROUP BY class_id ORDER BY class_id"
            )
        )

    def _forget_pixels(self, name: str) -> None:
        self._db.execute("DELETE FROM pixels WHERE name = ?", (name,))
        self._db.execute("UPDATE photos SET is_counted = 0 WHERE name = ?", (name,))

    def _settle(self, name: str, status: str, origin: Origin, request_id: str | None) -> None:
        values = {**asdict(origin), "status": status, "request_id": request_id}
        values |= {"finished": time.time(), "name": name}
        self._db.execute(
            "UPDATE photos SET status = :status, request_id = :request_id, finished = :finished,"
            " size = :size, mtime_ns = :mtime_ns, sha256 = :sha256, model = :model,"
            " model_digest = :model_digest, max_side = :max_side, options = :options"
            " WHERE name = :name",
            values,
        )

    def _is_from(self, name: str, origin: Origin) -> bool:
        row = self.get(name)
        return row is not None and row.origin.gives_same_result(origin)

    def _is_taken(self, stem: str) -> bool:
        return bool(self._db.execute("SELECT 1 FROM photos WHERE stem = ?", (stem,)).fetchone())

    def _select(self, query: str, *values: object) -> Iterator[Any]:
        with self._access():
            cursor = self._db.execute(query, values)
        while True:
            with self._access():
                row = cursor.fetchone()
            if row is None:
                return
            yield row

    def _row(self, found: tuple[Any, ...]) -> PhotoRow:
        fields = dict(zip(COLUMNS, found, strict=True))
        fields["outputs"] = self._outputs(fields["name"], fields["outputs"])
        is_counted = fields.pop("is_counted")
        return PhotoRow(**fields, classes=self._classes(fields["name"]) if is_counted else None)

    def _classes(self, name: str) -> tuple[ClassPixels, ...]:
        query = "SELECT class_id, class, pixels, confidence, regions FROM pixels WHERE name = ?"
        return tuple(ClassPixels(*entry) for entry in self._select(query, name))

    def _outputs(self, name: str, text: str) -> dict[str, int]:
        """Check that the paths in a column are in OUT: files are compared, removed and linked."""
        try:
            outputs = parse_json(text)
            if not all(stays_inside(file) and int(size) >= 0 for file, size in outputs.items()):
                raise ValueError("a path that leads out of OUT")
        except (ValueError, TypeError, AttributeError) as error:
            raise ManifestError(
                f"{self._path}: the outputs of {sentence(name)} are {sentence(text)}: "
                f"{sentence(error)}; use another OUT"
            ) from error
        return dict(outputs)

    @contextmanager
    def _access(self) -> Iterator[None]:
        """Lock the database, and turn SQLite's errors (a full disk, ...) into ManifestError."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise ManifestError(_explain(self._path, error)) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite has rolled back by itself after a full disk
                self._db.execute("ROLLBACK")
            raise


def _explain(path: Path, error: sqlite3.Error) -> str:
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return f"{path} is in use: another client is writing to this folder"
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return f"{path}: the disk is full: make room, and run the same command again"
    return f"{path}: {error}"
