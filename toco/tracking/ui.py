"""MLflow's UI for a database file, reachable from this machine only."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from toco.files import printable
from toco.tracking.address import Pages, sqlite_uri
from toco.tracking.mlflow_store import StoreError
from toco.tracking.moved_store import ARTIFACTS, follow_move

# Otherwise MLflow starts worker processes for jobs of language models.
_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def experiment_pages(database: Path, port: int) -> dict[str, str]:
    """List the pages of all experiments with runs, by the experiment's name.

    Artifact locations of a moved database are updated first.

    Args:
        database: The database file.
        port: Port of the server that will show it.

    Raises:
        ValueError: There is no such file.
        StoreError: The file is no database of MLflow.
    """
    if not database.is_file():
        raise ValueError(
            f"There is no {printable(database)} yet: a study makes it, and so does `python -m toco "
            "track RUN_DIR`."
        )
    try:
        follow_move(database)
        with closing(sqlite3.connect(database)) as connection:
            rows = connection.execute(
                "SELECT name, experiment_id FROM experiments WHERE lifecycle_stage = 'active' AND "
                "experiment_id IN (SELECT experiment_id FROM runs) ORDER BY experiment_id"
            ).fetchall()
    except sqlite3.Error as error:
        raise StoreError(
            f"{printable(database)} is no database of MLflow: {error}. Give another path."
        ) from error
    return {
        name: Pages(f"http://127.0.0.1:{port}", str(number)).experiment for name, number in rows
    }


def serve(database: Path, port: int) -> None:
    """Replace this process by MLflow's server for a database file, on loopback; Ctrl-C ends it."""
    # exec, so that a signal to this process ends the server.
    os.execve(  # noqa: S606
        sys.executable, server_command(database, port), {**os.environ, **_ENVIRONMENT}
    )


def server_command(database: Path, port: int) -> list[str]:
    """Return the command of MLflow's server for a database file, on loopback with one worker."""
    words = "-m mlflow server --host 127.0.0.1 --workers 1"
    return [
        sys.executable,
        *words.split(),
        *("--port", str(port)),
        *("--backend-store-uri", sqlite_uri(database)),
        *("--artifacts-destination", str(database.resolve().parent / ARTIFACTS)),
    ]
