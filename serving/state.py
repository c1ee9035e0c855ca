"""The folder in which a server keeps what survives a restart: one database, and files beside it.

lock              held while a server uses the folder
state.sqlite3     tables of `history.py` and `credits.py`
pictures/         files of `history.py`
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock
from typing import Any

from ..core.errors import RequestError, RuntimeMissing
from ..core.files import unwritable
from ..core.locks import LockedError, held

SCHEMA_VERSION = 1
LEAST_SQLITE = (3, 35, 0)
"""That has RETURNING."""
TABLES = """
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY AUTOINCREMENT, file TEXT NOT NULL UNIQUE, created REAL NOT NULL, waited REAL NOT NULL,
    seconds REAL NOT NULL, model TEXT NOT NULL, api TEXT NOT NULL, seed TEXT NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL, bytes INTEGER NOT NULL, request TEXT NOT NULL, thumbnail BLOB NOT NULL
);
CREATE INDEX picture_bytes ON pictures (bytes);
CREATE TABLE spent (account TEXT PRIMARY KEY, millionths INTEGER NOT NULL);
"""
"""Ids are not used again. The index gives the number and the bytes of all pictures without reading them."""

ADVICE = "Choose another folder for --state."


@dataclass
class StateFolder:
    """An open folder. May be used from any thread: one statement runs at a time."""

    folder: Path
    database: Path
    _connection: sqlite3.Connection
    _turn: Lock = field(default_factory=Lock, init=False)

    def run(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement in a transaction of its own; the rows that it gives. Raises `sqlite3.Error`."""
        with self._turn, self._connection, closing(self._connection.execute(statement, values)) as cursor:
            return cursor.fetchall()


DATABASE, LOCK = "state.sqlite3", "lock"


@contextmanager
def open_state(folder: Path) -> Generator[StateFolder]:
    """Open a folder, which is created if it is missing, and hold its lock.

    Raises `RequestError` if it can't be written, if another server uses it, or if its database is damaged or of another
    version, and `RuntimeMissing` if Python's SQLite is too old.
    """
    if sqlite3.sqlite_version_info < LEAST_SQLITE:
        wanted, found = ".".join(map(str, LEAST_SQLITE)), sqlite3.sqlite_version
        raise RuntimeMissing(
            f"--state needs SQLite {wanted} or later, and this Python has {found}. Use another Python."
        )
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)  # prompts and images are private
        with NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp"):
            pass
    except OSError as exc:
        raise RequestError(unwritable(folder, exc, ADVICE)) from exc
    database = folder / DATABASE
    foreign = (path for path in folder.iterdir() if path.name != LOCK and path.name[0] != ".")
    if not database.exists() and any(foreign):
        raise RequestError(f"{folder} has files that are not those of a server's state. Choose an empty folder.")
    try:
        with held(folder / LOCK), closing(_connected(database)) as connection:
            yield StateFolder(folder, database, connection)
    except LockedError as exc:
        raise RequestError(f"{folder} is used by another server ({exc}). Stop it, or choose another folder.") from exc


def _connected(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, check_same_thread=False)
    except sqlite3.Error as exc:
        raise damaged(path, exc) from exc
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise RequestError(f"{path} was written by another version of latentc (schema {version}). {ADVICE}")
        if version == 0:
            connection.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    except sqlite3.Error as exc:
        connection.close()
        raise damaged(path, exc) from exc
    except RequestError:
        connection.close()
        raise
    return connection


def damaged(path: Path, exc: sqlite3.Error) -> RequestError:
    """The error for a database that can't be read or written."""
    return RequestError(f"{path} can't be used as a database ({exc}). Remove it, or choose another folder.")
