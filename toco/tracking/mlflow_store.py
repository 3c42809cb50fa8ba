"""An experiment in a store of MLflow: open it, find runs by tags, upload missing files."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toco.files import printable
from toco.passwords import public_text, public_uri
from toco.tracking.address import Pages, client_uri, database_of, log_in, ui_host
from toco.tracking.moved_store import artifact_location, follow_move, local_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

RUN_TAG = "toco.run"
"""Tag by which a training's MLflow run is found: digest and name of its folder."""

STARTED_TAG = "toco.started"
"""Tag with the start of the training, in ms.

A resumed training keeps its start; one that begins anew in the same folder is another MLflow run.
"""

STUDY_TAG = "toco.study"
"""Tag by which a study's parent run is found."""

KIND_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment of trainings; without it MLflow shows traces of language models."""

_PARENT_TAG = "mlflow.parentRunId"
# Limits of MLflow (mlflow/utils/validation.py, 3.17).
_MAX_METRICS_PER_CALL = 1000
_MAX_TAGS_PER_CALL = 100
_MAX_NAME_CHARACTERS = 200

MetricValue = tuple[str, float, int, int]
"""Name, value, time in ms and step of a metric."""

# Tracking must not delay a training, but by default MLflow retries for minutes and waits two
# minutes for a request. MLflow must not print either: its line for every finished run would break
# the progress bar.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


@dataclass(frozen=True, slots=True)
class Store:
    """One experiment of one MLflow store."""

    client: MlflowClient
    experiment_id: str
    uri: str

    @property
    def pages(self) -> Pages:
        """Links to the experiment in MLflow's UI."""
        return Pages(ui_host(self.uri), self.experiment_id)

    def find_run(self, tags: Mapping[str, str], parent_run_id: str | None = None) -> Run | None:
        """Find the oldest run with these tags, under ``parent_run_id`` if that is given."""
        conditions = [f"tags.`{tag}` = '{value}'" for tag, value in tags.items()]
        if parent_run_id is not None:
            conditions.append(f"tags.`{_PARENT_TAG}` = '{parent_run_id}'")
        matches = self.client.search_runs(
            [self.experiment_id],
            " and ".join(conditions),
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        return matches[0] if matches else None

    def create_run(
        self,
        name: str,
        tags: Mapping[str, str],
        start_time_ms: int | None = None,
        parent_run_id: str | None = None,
    ) -> Run:
        """Create a run in state RUNNING."""
        parent = {} if parent_run_id is None else {_PARENT_TAG: parent_run_id}
        return self.client.create_run(self.experiment_id, start_time_ms, {**tags, **parent}, name)

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        """Set those tags whose values on ``run`` differ or are missing."""
        from mlflow.entities import RunTag

        changed = [
            RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value
        ]
        for start in range(0, len(changed), _MAX_TAGS_PER_CALL):
            self.client.log_batch(run.info.run_id, tags=changed[start : start + _MAX_TAGS_PER_CALL])

    def add_metrics(self, run: Run, rows: Iterable[MetricValue]) -> None:
        """Add those values of ``rows`` for whose metric and step ``run`` has none."""
        from mlflow.entities import Metric

        rows, run_id = list(rows), run.info.run_id
        stored_values = {
            (key, metric.step)
            for key in {key for key, *_ in rows} & run.data.metrics.keys()
            for metric in self.client.get_metric_history(run_id, key)
        }
        missing = [
            Metric(key, value, time_ms, step)
            for key, value, time_ms, step in rows
            if (key, step) not in stored_values
        ]
        for start in range(0, len(missing), _MAX_METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=missing[start : start + _MAX_METRICS_PER_CALL])

    def upload(
        self, run_id: str, files: Iterable[Path], folder: str = "", *, overwrite: bool = True
    ) -> None:
        """Upload ``files`` to an artifact folder.

        Without ``overwrite``, a file is skipped if an artifact of its name and size exists.
        """
        stored_sizes = {}
        if not overwrite:
            stored_sizes = {
                Path(item.path).name: item.file_size
                for item in self.client.list_artifacts(run_id, folder)
            }
        for file in files:
            name = _artifact_name(file.name)
            if stored_sizes.get(name) == file.stat().st_size:
                continue
            if name == file.name:
                self.client.log_artifact(run_id, str(file), folder or None)
                continue
            with tempfile.TemporaryDirectory() as scratch:
                renamed = shutil.copyfile(file, Path(scratch) / name)
                self.client.log_artifact(run_id, str(renamed), folder or None)


def _artifact_name(name: str) -> str:
    """Return an artifact name: MLflow's client puts names into URLs without encoding them."""
    safe = re.sub(r"[#?%]", "_", name)
    if safe == name:
        return name
    return f"{Path(safe).stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}{Path(safe).suffix}"


def import_mlflow() -> None:
    """Import MLflow, after setting its environment variables.

    Call this in the main thread before a thread tracks. MLflow imports compiled packages (pandas,
    pyarrow) that other code imports, too, and two threads that load them at once can crash the
    process.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.entities
    import mlflow.tracking  # noqa: F401


def open_store(tracking_uri: str, experiment: str) -> Store:
    """Open an experiment, which is made if it does not exist.

    With a database file the artifacts lie in ``mlartifacts`` beside it, also after both were moved.

    Raises:
        ValueError: The URI is of no supported kind, or the experiment was deleted or cannot be
            written from here.
        ConnectionError: The store cannot be reached or read.
    """
    uri = client_uri(tracking_uri)
    import_mlflow()
    from mlflow import MlflowClient

    database, location = database_of(uri), None
    with store_errors_as_sentences(uri):
        if database is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
            _check_database(database)
            location = artifact_location(database, experiment)
        client = MlflowClient(tracking_uri=log_in(uri))
        mlflow_experiment = _find_or_create(client, experiment, location)
    if mlflow_experiment.lifecycle_stage != "active":
        raise ValueError(
            f"The MLflow experiment {experiment!r} was deleted. Restore it, or give another name."
        )
    if database is not None and mlflow_experiment.artifact_location.startswith("mlflow-artifacts:"):
        raise ValueError(
            f"The MLflow experiment {experiment!r} was made through a server, which alone can "
            "reach its artifacts. Give the address of that server, or another --experiment."
        )
    folder = local_folder(mlflow_experiment.artifact_location)
    if database is None and folder is not None and not folder.parent.parent.is_dir():
        # MLflow's client would make that folder on this machine, where the server cannot read it.
        raise ValueError(
            f"The artifacts of the MLflow experiment {experiment!r} lie in {printable(folder)} on "
            "the server's machine, and there is no such folder on this one. Give another "
            "--experiment, or fill it on that machine."
        )
    return Store(client, mlflow_experiment.experiment_id, uri)


@contextmanager
def store_errors_as_sentences(uri: str) -> Iterator[None]:
    """Turn errors of MLflow, its database or the network into sentences.

    No sentence contains a password.

    Args:
        uri: Address of the store.

    Raises:
        StoreError: In place of any such error.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        kind = "" if isinstance(error, MlflowException) else f"{type(error).__name__}: "
        message = printable(" ".join(public_text(str(error)).split()))
        raise StoreError(
            f"MLflow at {printable(public_uri(uri))} failed: {kind}{shorten(message, 300)} "
            "Check that it runs, accepts this name and has disk space, or give another address; "
            "the run folders have everything."
        ) from error


def shorten(text: str, num_characters: int) -> str:
    """Cut a text to at most ``num_characters``, and end it with a full stop or an ellipsis."""
    text = text.rstrip(". ")
    return f"{text}." if len(text) < num_characters else f"{text[: num_characters - 3]}..."


class StoreError(ConnectionError):
    """MLflow cannot be reached, read or written; the message contains no password."""


def _check_database(database: Path) -> None:
    """Open a database, and update its artifact locations after a move.

    A file that cannot be opened is refused at once; MLflow would retry for 100 s.
    """
    try:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")
        follow_move(database)
    except sqlite3.Error as error:
        raise StoreError(
            f"{printable(database)} cannot be used as MLflow's database: {error}. Give another "
            "path."
        ) from error


def _find_or_create(client: MlflowClient, name: str, artifact_location: str | None) -> Experiment:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location, KIND_TAGS))
    except MlflowException:
        # Another process may have made the experiment in between.
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment


def part_of_name(text: str) -> str:
    """Make a text a part of the name of a metric or tag.

    Characters that such names cannot have become underscores, slashes too. Long texts are cut.

    >>> part_of_name("#10 / seg > 5")
    '_10 _ seg _ 5'
    """
    return re.sub(r"[^A-Za-z0-9_.\- ]", "_", text)[:_MAX_NAME_CHARACTERS]


def tag_value(text: str) -> str:
    """Replace characters, such as quotes and spaces, that would break a search filter."""
    return re.sub(r"[^\w.=+/:-]", "_", text)
