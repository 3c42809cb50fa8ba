"""Where MLflow keeps its runs: opening a store, finding a run by a tag, uploading what is not there yet."""

from __future__ import annotations

import os
import re
import sqlite3
import urllib.parse
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

RUN_TAG = "toco.run"
"""Tag by which a training finds its MLflow run again: digest and name of its folder."""

STARTED_TAG = "toco.started"
"""When the training began, in ms: a resumed one keeps it, one that was begun anew in the same folder is another run."""

STUDY_TAG = "toco.study"
"""Tag by which a study finds its parent run again."""

_PARENT_TAG = "mlflow.parentRunId"

# A tracker must not hold a training up: MLflow itself retries for minutes and waits two minutes a request. Nor must it
# talk: it would print a line for every run that ends, into the middle of a progress bar.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


def client_uri(uri: str) -> str:
    """``uri`` with a relative sqlite path made absolute: workers of a cluster run in other folders.

    Raises:
        ValueError: It is neither an sqlite path nor the address of a server.

    >>> client_uri("http://127.0.0.1:5000")
    'http://127.0.0.1:5000'
    """
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/")
    if uri.startswith("sqlite:///") and len(uri) > len("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().resolve()}"
    raise ValueError(
        f"The tracking URI {public_uri(uri)!r} is neither sqlite:///PATH nor http(s)://HOST. "
        "MLflow no longer writes plain folders; for another database start an MLflow server and give its address."
    )


def public_uri(uri: str) -> str:
    """``uri`` without user name and password, for messages, reports and tags.

    >>> public_uri("https://me:secret@host:5000/x")
    'https://host:5000/x'
    """
    return re.sub(r"//[^/@]*@", "//", uri)


@dataclass(frozen=True, slots=True)
class Store:
    """One experiment of one MLflow store."""

    client: MlflowClient
    experiment_id: str

    def find_run(self, tags: Mapping[str, str], parent_run_id: str | None = None) -> Run | None:
        """The run with these tags (under this parent, if one is given); the oldest, should there be several."""
        conditions = [f"tags.`{tag}` = '{value}'" for tag, value in tags.items()]
        if parent_run_id is not None:
            conditions.append(f"tags.`{_PARENT_TAG}` = '{parent_run_id}'")
        found = self.client.search_runs(
            [self.experiment_id], " and ".join(conditions), max_results=1, order_by=["attributes.start_time ASC"]
        )
        return found[0] if found else None

    def create_run(
        self, name: str, tags: Mapping[str, str], start_time_ms: int | None = None, parent_run_id: str | None = None
    ) -> Run:
        """A new run in state RUNNING."""
        parent = {} if parent_run_id is None else {_PARENT_TAG: parent_run_id}
        return self.client.create_run(self.experiment_id, start_time_ms, {**tags, **parent}, name)

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        """Set the tags that ``run`` does not hold with these values already."""
        from mlflow.entities import RunTag

        changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
        if changed:
            self.client.log_batch(run.info.run_id, tags=changed)

    def upload(self, run_id: str, files: Iterable[Path], folder: str = "", *, overwrite: bool = True) -> None:
        """Upload ``files`` to an artifact folder; without ``overwrite`` only those not there in their full size."""
        there = {}
        if not overwrite:
            there = {Path(item.path).name: item.file_size for item in self.client.list_artifacts(run_id, folder)}
        for file in files:
            if there.get(file.name) != file.stat().st_size:
                self.client.log_artifact(run_id, str(file), folder or None)


def import_mlflow() -> None:
    """Import MLflow with the environment that it is to have.

    Who is going to track from a thread calls this first: MLflow brings compiled packages (pandas, pyarrow) that others
    import, too, and two threads that load them at once can crash the process.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.entities
    import mlflow.tracking  # noqa: F401


def open_store(tracking_uri: str, experiment: str) -> Store:
    """Open an experiment, making it where it does not exist.

    With sqlite its artifacts go to ``mlartifacts`` beside the database; MLflow's own choice is the current folder.

    Raises:
        ValueError: The URI is of no supported kind, or the experiment was deleted.
        ConnectionError: The store cannot be reached or read.
    """
    uri = client_uri(tracking_uri)
    import_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        database.parent.mkdir(parents=True, exist_ok=True)
        _check_database(database)
        location = (database.parent / "mlartifacts" / urllib.parse.quote(experiment, safe="")).as_uri()
    client = MlflowClient(tracking_uri=uri)
    try:
        found = _find_or_create(client, experiment, location)
    except MlflowException as error:
        raise ConnectionError(
            f"MLflow at {public_uri(uri)} does not answer as it should; see that it runs, or give another address. "
            f"MLflow says: {public_uri(str(error))[:300]}"
        ) from error
    if found.lifecycle_stage != "active":
        raise ValueError(f"The MLflow experiment {experiment!r} was deleted. Restore it, or give another name.")
    return Store(client, found.experiment_id)


def _check_database(database: Path) -> None:
    """Refuse at once a file that cannot be opened: MLflow would try for 100 s."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise ConnectionError(f"{database} cannot be used as MLflow's database: {error}. Give another path.") from error


def _find_or_create(client: MlflowClient, name: str, artifact_location: str | None) -> Experiment:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return found
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=artifact_location))
    except MlflowException:
        # Another process may have made it in between.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found


def tag_value(text: str) -> str:
    """``text`` fit for a search filter: a quote or a space in a folder's name would break the query."""
    return re.sub(r"[^\w.=+/:-]", "_", text)
