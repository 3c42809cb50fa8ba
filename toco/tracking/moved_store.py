"""A database file that was moved or copied together with its artifacts, and whose entries name the old folder.

MLflow keeps absolute locations only. Those that this library made end in
``mlartifacts/EXPERIMENT``, beside the database, so that where they are now is known.
"""

from __future__ import annotations

import hashlib
import sqlite3
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

ARTIFACTS = "mlartifacts"
"""Folder of artifacts beside a database file."""

# Where MLflow 3.17 keeps locations of artifacts. A database of another version may lack one.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_LONGEST_NAME = 200
_WAIT_S = 30.0
"""For another process that writes to the database."""


def artifact_location(database: Path, experiment: str) -> str:
    """Where the artifacts of an experiment lie; MLflow's own choice is the current folder.

    The folder has the name of the experiment, encoded as in an address. A file system takes 255
    bytes.
    """
    name = urllib.parse.quote(experiment, safe="")
    if name.startswith("."):  # "..", above all
        name = f"%2E{name[1:]}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[:100]}-{hashlib.sha256(experiment.encode()).hexdigest()[:16]}"
    return (database.resolve().parent / ARTIFACTS / name).as_uri()


def follow_move(database: Path) -> None:
    """Let a database name the artifacts beside it, where it names those of a folder that it was moved or copied from.

    Locations of another form stay, and so does a folder that exists elsewhere while there is none
    beside the database.

    Raises:
        sqlite3.Error: It cannot be read or written.
    """
    if not database.is_file():
        return
    with closing(sqlite3.connect(database, timeout=_WAIT_S)) as connection:
        # A relative path would differ from every location, and a location cannot be made of it.
        moves = list(_moves(connection, database.resolve().parent / ARTIFACTS))
        if not moves:
            return
        with connection:
            for table, column in _COLUMNS:
                if column in _columns(connection, table):
                    for old, new in moves:
                        connection.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names from above
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                        )


def _moves(connection: sqlite3.Connection, here: Path) -> Iterator[tuple[str, str]]:
    """Old and new location of every experiment whose artifacts lie beside the database now."""
    if "artifact_location" not in _columns(connection, "experiments"):
        return
    for (old,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments"):
        folder = local_folder(old)
        if folder is None or folder.parent.name != ARTIFACTS or folder.parent == here:
            continue
        new = here / folder.name
        if new.is_dir() or not folder.is_dir():
            yield old, new.as_uri()


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]


def local_folder(location: str | None) -> Path | None:
    """The folder of a location of artifacts; ``None`` where it is none of a file system."""
    parts = urllib.parse.urlsplit(location or "")
    return (
        Path(urllib.parse.unquote(parts.path))
        if parts.scheme == "file" and not parts.netloc
        else None
    )
