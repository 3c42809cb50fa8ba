"""Where MLflow keeps its runs: opening a store, finding a run by a tag, uploading what is not there yet."""

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
"""Tag by which a training finds its MLflow run again: digest and name of its folder."""

STARTED_TAG = "toco.started"
"""When the training began, in ms: a resumed one keeps it, one that was begun anew in the same folder is another run."""

STUDY_TAG = "toco.study"
"""Tag by which a study finds its parent run again."""

KIND_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""What MLflow calls an experiment of trainings; where nothing is said, its page shows traces of language models."""

_PARENT_TAG = "mlflow.parentRunId"

# A tracker must not hold a training up: MLflow itself retries for minutes and waits two minutes a
# request. Nor must it talk: it would print a line for every run that ends, into the middle of a
# progress bar.
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
        """Where MLflow's UI shows the experiment."""
        return Pages(ui_host(self.uri), self.experiment_id)

    def find_run(self, tags: Mapping[str, str], parent_run_id: str | None = None) -> Run | None:
        """The run with these tags (under this parent, if one is given); the oldest, should there be several."""
        conditions = [f"tags.`{tag}` = '{value}'" for tag, value in tags.items()]
        if parent_run_id is not None:
            conditions.append(f"tags.`{_PARENT_TAG}` = '{parent_run_id}'")
        found = self.client.search_runs(
            [self.experiment_id],
            " and ".join(conditions),
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        return found[0] if found else None

    def create_run(
        self,
        name: str,
        tags: Mapping[str, str],
        start_time_ms: int | None = None,
        parent_run_id: str | None = None,
    ) -> Run:
        """A new run in state RUNNING."""
        parent = {} if parent_run_id is None else {_PARENT_TAG: parent_run_id}
        return self.client.create_run(self.experiment_id, start_time_ms, {**tags, **parent}, name)

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        """Set the tags that ``run`` does not hold with these values already."""
        from mlflow.entities import RunTag

        changed = [
            RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value
        ]
        if changed:
            self.client.log_batch(run.info.run_id, tags=changed)

    def upload(
        self, run_id: str, files: Iterable[Path], folder: str = "", *, overwrite: bool = True
    ) -> None:
        """Upload ``files`` to an artifact folder; without ``overwrite`` only those not there in their full size."""
        there = {}
        if not overwrite:
            there = {
                Path(item.path).name: item.file_size
                for item in self.client.list_artifacts(run_id, folder)
            }
        for file in files:
            name = _artifact_name(file.name)
            if there.get(name) == file.stat().st_size:
                continue
            if name == file.name:
                self.client.log_artifact(run_id, str(file), folder or None)
                continue
            with tempfile.TemporaryDirectory() as scratch:
                renamed = shutil.copyfile(file, Path(scratch) / name)
                self.client.log_artifact(run_id, str(renamed), folder or None)


def _artifact_name(name: str) -> str:
    """Name under which a file is uploaded: MLflow's client puts it into an address without encoding it."""
    safe = re.sub(r"[#?%]", "_", name)
    if safe == name:
        return name
    return f"{Path(safe).stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}{Path(safe).suffix}"


def import_mlflow() -> None:
    """Import MLflow with the environment that it is to have.

    Who is going to track from a thread calls this first: MLflow brings compiled packages (pandas,
    pyarrow) that others import, too, and two threads that load them at once can crash the process.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.entities
    import mlflow.tracking  # noqa: F401


def open_store(tracking_uri: str, experiment: str) -> Store:
    """Open an experiment, making it where it does not exist.

    With sqlite its artifacts lie in ``mlartifacts`` beside the database, also where both were
    moved.

    Raises:
        ValueError: The URI is of no supported kind, or the experiment was deleted or cannot be
            written from here.
        ConnectionError: The store cannot be reached or read.
    """
    uri = client_uri(tracking_uri)
    import_mlflow()
    from mlflow import MlflowClient

    database, location = database_of(uri), None
    with answers(uri):
        if database is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
            _check_database(database)
            location = artifact_location(database, experiment)
        client = MlflowClient(tracking_uri=log_in(uri))
        found = _find_or_create(client, experiment, location)
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"The MLflow experiment {experiment!r} was deleted. Restore it, or give another name."
        )
    if database is not None and found.artifact_location.startswith("mlflow-artifacts:"):
        raise ValueError(
            f"The MLflow experiment {experiment!r} was made through a server, which alone can "
            "reach its artifacts. Give the address of that server, or another --experiment."
        )
    folder = local_folder(found.artifact_location)
    if database is None and folder is not None and not folder.parent.parent.is_dir():
        # MLflow's client would make that folder here, and nobody would find the artifacts.
        raise ValueError(
            f"The artifacts of the MLflow experiment {experiment!r} lie in {printable(folder)} on "
            "the server's machine, and there is no such folder on this one. Give another "
            "--experiment, or fill it on that machine."
        )
    return Store(client, found.experiment_id, uri)


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """What MLflow, its database or the network raise in this block becomes one sentence without a password.

    Args:
        uri: Of the store.

    Raises:
        ConnectionError: In place of any such error.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        kind = "" if isinstance(error, MlflowException) else f"{type(error).__name__}: "
        said = printable(" ".join(public_text(str(error)).split()))
        raise StoreError(
            f"MLflow at {printable(public_uri(uri))} does not take it: {kind}{shorten(said, 300)} "
            "See that it runs, takes this name and has room, or give another address; the run "
            "folders have everything."
        ) from error


def shorten(text: str, num_characters: int) -> str:
    """A text of at most so many characters that ends as a sentence does."""
    text = text.rstrip(". ")
    return f"{text}." if len(text) < num_characters else f"{text[: num_characters - 3]}..."


class StoreError(ConnectionError):
    """MLflow cannot be reached, read or written. The message is a sentence without a password."""


def _check_database(database: Path) -> None:
    """Refuse at once a file that cannot be opened: MLflow would try for 100 s. Follow one that was moved."""
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

    found = client.get_experiment_by_name(name)
    if found is not None:
        return found
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location, KIND_TAGS))
    except MlflowException:
        # Another process may have made it in between.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found


def tag_value(text: str) -> str:
    """``text`` fit for a search filter: a quote or a space in a folder's name would break the query."""
    return re.sub(r"[^\w.=+/:-]", "_", text)
