"""The jobs and their photos in SQLite, and their files in folders beside it.

The folder belongs to one process, which holds a lock on it. Nothing outside of its subfolder
`files` is ever removed.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, get_args

from service.errors import JobsFull, StartupError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

State = Literal["queued", "running", "done", "failed"]
UNFINISHED: tuple[State, ...] = ("queued", "running")
Kind = Literal["zip", "urls", "paths"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, kind TEXT NOT NULL,
    query TEXT NOT NULL, created REAL NOT NULL, ended REAL, error TEXT,
    photos INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS photos (
    job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL,
    name TEXT NOT NULL, entry TEXT, PRIMARY KEY (job, number)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, created, bytes);
"""
COLUMNS = "id, owner, state, kind, query, created, ended, error, photos, done, failed, bytes"
LISTED = 1000  # jobs
FILES, INPUT, OUTPUTS, RESULT = "files", "input.zip", "outputs", "result.zip"


@dataclass(frozen=True)
class StoredJob:
    """A job as it is stored."""

    id: str
    owner: str  # digest of the key that made it, or empty
    state: State
    kind: Kind
    query: str  # JSON of the options
    created: float  # seconds since 1970, as all times here
    ended: float | None
    error: str | None
    photos: int
    done: int  # finished photos, including failed ones
    failed: int
    bytes: int  # on the disk


@dataclass(frozen=True)
class Totals:
    """Figures of the jobs of all owners."""

    states: dict[State, int]  # number of jobs in each state
    bytes: int
    oldest_unfinished: float | None  # creation time of the oldest unfinished job

    @property
    def jobs(self) -> int:
        """The number of all jobs."""
        return sum(self.states.values())

    @property
    def unfinished(self) -> int:
        """The number of queued and running jobs."""
        return sum(self.states[state] for state in UNFINISHED)


class Store:
    """Jobs on a disk. Call its methods in threads: on a full disk, any of them may block."""

    totals: Totals  # after the last change; reading them needs no disk access

    def __init__(self, folder: Path) -> None:
        """Open or make the store; raises StartupError."""
        self.folder = folder / FILES  # of the jobs, each in a folder of its own
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = _locked(folder / "lock")
            self._database = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False)
            self._database.executescript(
                "PRAGMA journal_mode=WAL; PRAGMA foreign_keys=ON;" + SCHEMA
            )
        except (OSError, sqlite3.Error) as error:
            raise StartupError(f"--jobs {folder}: {error}") from None
        self._lock = threading.Lock()
        self.totals = self._totals()

    def close(self) -> None:
        """Close the store. No thread may still use it: SQLite would crash the process."""
        with self._lock:
            self._database.close()
        self._lock_file.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction; raises JobsFull if the disk has no room for it."""
        try:
            with self._lock, self._database:
                yield self._database
                self.totals = self._totals()
        except sqlite3.OperationalError as error:
            raise JobsFull(f"the list of jobs cannot be written: {error}") from None

    def _change(self, sql: str, *values: object, then: Callable[[], None]) -> None:
        """Change a job, then remove its files by `then`; on a full disk, remove them first."""
        try:
            with self._writing() as database:
                database.execute(sql, values)
        except JobsFull:
            then()
            with self._writing() as database:
                database.execute(sql, values)
        then()

    def _totals(self) -> Totals:
        counts: dict[State, int] = dict.fromkeys(get_args(State), 0)
        size, unfinished = 0, list[float]()
        for state, count, of_state, oldest in self._database.execute(
            "SELECT state, count(*), sum(bytes), min(created) FROM jobs GROUP BY state"
        ):
            counts[state] = count
            size += of_state
            if state in UNFINISHED:
                unfinished.append(oldest)
        return Totals(counts, size, min(unfinished, default=None))

    def _rows(self, sql: str, *values: object) -> list[Any]:
        with self._lock:
            return self._database.execute(sql, values).fetchall()

    def reserve(self) -> tuple[str, Path]:
        """Return the id and the folder of a new job, which is not listed yet; raises JobsFull."""
        name = secrets.token_hex(16)  # never begins with `-`, as an option does
        try:
            (self.folder / name / OUTPUTS).mkdir(parents=True)
        except OSError as error:
            raise JobsFull(f"a job's folder cannot be made: {error.strerror}") from None
        return name, self.folder / name

    def add(
        self, name: str, owner: str, kind: Kind, *, query: str, photos: Sequence[str], size: int
    ) -> StoredJob:
        """Queue a job."""
        with self._writing() as database:
            database.execute(
                "INSERT INTO jobs (id, owner, state, kind, query, created, photos, bytes) "
                "VALUES (?, ?, 'queued', ?, ?, ?, ?, ?)",
                (name, owner, kind, query, time.time(), len(photos), size),
            )
            database.executemany(
                "INSERT INTO photos (job, number, name) VALUES (?, ?, ?)",
                [(name, number, photo) for number, photo in enumerate(photos)],
            )
        return StoredJob(*self._rows(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", name)[0])

    def get(self, name: str, owner: str | None = None) -> StoredJob | None:
        """Return a job if it belongs to this owner; `owner` None: to anybody."""
        rows = self._rows(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", name)
        jobs = [StoredJob(*row) for row in rows]
        return next((job for job in jobs if owner in {None, job.owner}), None)

    def all(self, owner: str) -> list[StoredJob]:
        """Return the LISTED newest jobs of an owner in the order in which they were made."""
        where = f"SELECT {COLUMNS} FROM jobs WHERE owner = ? ORDER BY created DESC LIMIT {LISTED}"
        return [StoredJob(*row) for row in reversed(self._rows(where, owner))]

    def requeue(self) -> None:
        """Queue the jobs that ran when the process ended; raises JobsFull."""
        with self._writing() as database:
            database.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")

    def remove_strays(self) -> None:
        """Remove files that belong to no job; call it before jobs arrive."""
        known = {row[0] for row in self._rows("SELECT id FROM jobs")}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in known:
                shutil.rmtree(path, ignore_errors=True)

    def take(self) -> StoredJob | None:
        """Mark the oldest queued job as running and return it; raises JobsFull."""
        with self._writing() as database:
            row = database.execute(
                "UPDATE jobs SET state = 'running' WHERE id = (SELECT id FROM jobs "
                "WHERE state = 'queued' ORDER BY created LIMIT 1) RETURNING id"
            ).fetchone()
        return None if row is None else self.get(row[0])

    def names(self, name: str) -> list[str]:
        """Return the names of a job's photos."""
        return [row[0] for row in self._rows("SELECT name FROM photos WHERE job = ?", name)]

    def pending(self, name: str) -> list[tuple[int, str]]:
        """Return number and name of the photos that are not finished."""
        return self._rows("SELECT number, name FROM photos WHERE job = ? AND entry IS NULL", name)

    def entries(self, name: str) -> list[dict[str, Any]]:
        """Return the results of the photos, for results.json."""
        rows = self._rows("SELECT entry FROM photos WHERE job = ? ORDER BY number", name)
        return [json.loads(row[0]) for row in rows]

    def note(self, name: str, number: int, entry: dict[str, Any], size: int) -> None:
        """Store the result of a photo; raises JobsFull."""
        failed = int(entry["status"] != 200)
        with self._writing() as database:
            database.execute(
                "UPDATE photos SET entry = ? WHERE job = ? AND number = ?",
                (json.dumps(entry), name, number),
            )
            database.execute(
                "UPDATE jobs SET done = done + 1, failed = failed + ?, bytes = bytes + ? "
                "WHERE id = ?",
                (failed, size, name),
            )

    def end(self, name: str, state: State, error: str | None, size: int) -> None:
        """Store the end of a job, and remove its files except the result.

        Raises JobsFull.
        """
        self._change(
            "UPDATE jobs SET state = ?, error = ?, ended = ?, bytes = ? WHERE id = ?",
            *(state, error, time.time(), size, name),
            then=partial(self._clear, name, result=state != "done"),
        )

    def remove(self, name: str) -> None:
        """Delete a job and its files; raises JobsFull."""
        self._change(
            "DELETE FROM jobs WHERE id = ?",
            name,
            then=partial(shutil.rmtree, self.folder / name, ignore_errors=True),
        )

    def _clear(self, name: str, *, result: bool) -> None:
        shutil.rmtree(self.folder / name / OUTPUTS, ignore_errors=True)
        for file in (INPUT, RESULT) if result else (INPUT,):
            (self.folder / name / file).unlink(missing_ok=True)

    def expired(self, before: float) -> list[str]:
        """Return the jobs that ended before a time."""
        return [row[0] for row in self._rows("SELECT id FROM jobs WHERE ended < ?", before)]


def _locked(path: Path) -> IO[bytes]:
    """Hold a lock until the process ends; raises OSError if another one holds it."""
    file = path.open("ab")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise OSError(
                "another process uses this folder: give each replica a folder of its own"
            ) from None
    return file
