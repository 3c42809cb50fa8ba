"""Update the artifact locations of a database that was moved or copied with its artifacts.

MLflow stores absolute locations only. Locations made by this library end in
``mlartifacts/EXPERIMENT``, beside the database, so that the new location is known.
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

# Tables and columns in which MLflow 3.17 stores artifact locations; other versions may lack some.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_LONGEST_NAME = 200
"""Longest name of a folder, in characters; file systems allow 255 bytes."""
_WAIT_S = 30.0
"""Longest wait for another process that writes to the database."""


def artifact_location(database: Path, experiment: str) -> str:
    """Return the location for an experiment's artifacts; MLflow's default is the current folder.

    The folder has the name of the experiment, encoded as in a URL and cut where it is too long.
    """
    name = urllib.parse.quote(experiment, safe="")
    if name.startswith("."):  # "." and ".." would name other folders
        name = f"%2E{name[1:]}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[:100]}-{hashlib.sha256(experiment.encode()).hexdigest()[:16]}"
    return (database.resolve().parent / ARTIFACTS / name).as_uri()


def follow_move(database: Path) -> None:
    """Update artifact locations of a moved database to the folder beside it.

    Locations of another form stay. So does a location whose folder exists while none exists beside
    the database.

    Raises:
        sqlite3.Error: The database cannot be read or written.
    """
    if not database.is_file():
        return
    with closing(sqlite3.connect(database, timeout=_WAIT_S)) as connection:
        # Resolved, because locations are absolute: a relative path would equal none of them.
        moves = list(_moves(connection, database.resolve().parent / ARTIFACTS))
        if not moves:
            return
        with connection:
            for table, column in _COLUMNS:
                if column in _columns(connection, table):
                    for old, new in moves:
                        connection.execute(
                            # Table and column are constants above, so this is no injection.
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                        )


def _moves(connection: sqlite3.Connection, artifacts_folder: Path) -> Iterator[tuple[str, str]]:
    """Yield old and new location of every experiment whose artifacts moved with the database."""
    if "artifact_location" not in _columns(connection, "experiments"):
        return
    for (old,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments"):
        folder = local_folder(old)
        if folder is None or folder.parent.name != ARTIFACTS or folder.parent == artifacts_folder:
            continue
        new = artifacts_folder / folder.name
        if new.is_dir() or not folder.is_dir():
            yield old, new.as_uri()


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]


def local_folder(location: str | None) -> Path | None:
    """Return the folder of an artifact location; ``None`` where it is not in a file system."""
    parts = urllib.parse.urlsplit(location or "")
    return (
        Path(urllib.parse.unquote(parts.path))
        if parts.scheme == "file" and not parts.netloc
        else None
    )
