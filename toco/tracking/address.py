"""Addresses of MLflow's stores and of the pages of its UI.

A store is a database file (``sqlite:///PATH``) or a server (``http://HOST:PORT``). Only this module
makes and reads such addresses. ``log_in`` moves a password from the address to MLflow's environment
variables, so that no address with a password leaves this module.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from toco.files import printable
from toco.passwords import public_uri

LOCAL_UI = "http://127.0.0.1:5000"
"""Address where ``python -m toco mlflow`` shows a database file, unless it gets another port."""

VIEW_KEY = "trainings-by-row"
"""Key of the saved view with which an experiment's page opens, see ``chart_view``."""

_SQLITE = "sqlite:///"
# Without it MLflow 3 shows the page for another kind of experiment, traces of language models.
_TRAININGS = "workflowType=machine_learning"
_CHARTS = f"{_TRAININGS}&compareRunsMode=CHART&viewStateShareKey={VIEW_KEY}"
_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
# SQLAlchemy takes a question mark for the beginning of a query, and decodes %20.
_UNUSABLE_IN_PATH = re.compile(r"\?|%[0-9a-fA-F]{2}")


def sqlite_uri(database: Path) -> str:
    """Return the address of a database file, with an absolute path.

    The file need not exist.

    Raises:
        ValueError: The path contains characters that MLflow misreads.

    >>> sqlite_uri(Path("/data/my results/mlflow.db"))
    'sqlite:////data/my results/mlflow.db'
    """
    path = database.expanduser().resolve()
    unusable = _UNUSABLE_IN_PATH.search(str(path))
    if unusable is not None:
        raise ValueError(
            f"MLflow cannot open the database {printable(path)}: its path contains "
            f"{unusable[0]!r}. Rename the folder or the file, or give the address of an MLflow "
            "server."
        )
    return f"{_SQLITE}{path}"


def client_uri(uri: str) -> str:
    """Check a store's address, and bring it to the form that MLflow takes.

    A relative path becomes absolute, because workers of a cluster run in other folders.

    Raises:
        ValueError: ``uri`` is neither the address of a database file nor of a server. The message
            contains no password.

    >>> client_uri("http://127.0.0.1:5000/")
    'http://127.0.0.1:5000'
    """
    if uri.startswith(("http://", "https://")):
        return _server_uri(uri)
    if uri.startswith(_SQLITE) and len(uri) > len(_SQLITE):
        return sqlite_uri(Path(uri.removeprefix(_SQLITE)))
    raise ValueError(
        f"The tracking URI {public_uri(uri)!r} is neither sqlite:///PATH nor http(s)://HOST. "
        "MLflow no longer writes plain folders; for another database start an MLflow server and "
        "give its address."
    )


def database_of(uri: str) -> Path | None:
    """Return the database file of a store's address; ``None`` for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def has_password(uri: str) -> bool:
    """Whether a store's address contains a user or a password."""
    return database_of(uri) is None and "@" in urllib.parse.urlsplit(uri).netloc


def log_in(uri: str) -> str:
    """Move user and password from a server's address to MLflow's environment variables.

    MLflow writes the server's address into its errors, so the address must not contain them.

    Returns:
        The address without user and password.
    """
    if not has_password(uri):
        return uri
    parts = urllib.parse.urlsplit(uri)
    credentials, _, host = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    for name, value in zip(_CREDENTIALS, (user, password), strict=True):
        os.environ[name] = urllib.parse.unquote(value)
    return urllib.parse.urlunsplit(parts._replace(netloc=host))


@dataclass(frozen=True, slots=True)
class Pages:
    """Links to the pages of an experiment in MLflow's UI.

    Attributes:
        host: Address of the UI.
        experiment_id: MLflow's id of the experiment.
    """

    host: str
    experiment_id: str

    @property
    def experiment(self) -> str:
        """Link to the runs of the experiment as charts, grouped by row."""
        return f"{self.host}/#/experiments/{self.experiment_id}/runs?{_CHARTS}"

    def run(self, run_id: str) -> str:
        """Link to one run."""
        return f"{self.host}/#/experiments/{self.experiment_id}/runs/{run_id}?{_TRAININGS}"


def ui_host(uri: str) -> str:
    """Return the address of a store's UI: its server, or ``LOCAL_UI`` for a database file."""
    return LOCAL_UI if database_of(uri) else public_uri(uri)


def _server_uri(uri: str) -> str:
    host = uri.partition("://")[2]
    advice = (
        "Give http(s)://HOST:PORT, with user name and password in MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD"
    )
    try:
        parts = urllib.parse.urlsplit(uri)
        is_address = (
            bool(parts.hostname) and parts.port != 0 and host.isprintable() and " " not in host
        )
    except ValueError:  # a wrong port, or wrong brackets of an IPv6 address
        is_address = False
    if not is_address:
        raise ValueError(
            f"The tracking URI {public_uri(uri)!r} is not the address of a server. {advice}."
        )
    if parts.query or parts.fragment or "@" in parts.path:
        raise ValueError(
            f"The tracking URI {public_uri(uri)!r} has more than an address: a query, a fragment, "
            f"or a '/', '?' or '#' in the password. {advice}."
        )
    return uri.rstrip("/")
