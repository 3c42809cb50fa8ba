"""Addresses of MLflow: of its store, as a person gives it, and of the pages that show what lies in it.

A store is a database file (``sqlite:///PATH``) or a server (``http://HOST:PORT``). All such
addresses are made and read here, and no address with a password leaves this module: ``log_in``
hands the password to MLflow's environment.
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
"""Where ``python -m toco mlflow`` shows a database file unless it is given another port."""

VIEW_KEY = "trainings-by-row"
"""Key of the saved view that the page of an experiment opens with, see ``chart_view``."""

_SQLITE = "sqlite:///"
# MLflow 3 shows an experiment of another kind, traces of language models, unless the address says
# what it wants.
_TRAININGS = "workflowType=machine_learning"
_CHARTS = f"{_TRAININGS}&compareRunsMode=CHART&viewStateShareKey={VIEW_KEY}"
_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
# SQLAlchemy takes a question mark for the beginning of a query, and decodes %20.
_UNUSABLE_IN_PATH = re.compile(r"\?|%[0-9a-fA-F]{2}")


def sqlite_uri(database: Path) -> str:
    """Address of a database file, which need not be there; the path becomes absolute.

    Raises:
        ValueError: MLflow could not open a database of this path.

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
    """``uri`` as MLflow takes it; a relative path becomes absolute, as workers of a cluster run in other folders.

    Raises:
        ValueError: It is neither the address of a database file nor of a server. The message holds
            no password.

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
    """The database file of a store's address; ``None`` for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def has_password(uri: str) -> bool:
    """Whether a store's address names a user or a password."""
    return database_of(uri) is None and "@" in urllib.parse.urlsplit(uri).netloc


def log_in(uri: str) -> str:
    """Give user name and password in the address of a server to MLflow by its environment; returns the address without.

    MLflow writes the address of its server into its errors.
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
    """Pages of MLflow's UI that show an experiment; all links to MLflow are made here.

    Attributes:
        host: Where the UI is.
        experiment_id: MLflow's.
    """

    host: str
    experiment_id: str

    @property
    def experiment(self) -> str:
        """The runs of the experiment as charts, grouped by row."""
        return f"{self.host}/#/experiments/{self.experiment_id}/runs?{_CHARTS}"

    def run(self, run_id: str) -> str:
        """One run."""
        return f"{self.host}/#/experiments/{self.experiment_id}/runs/{run_id}?{_TRAININGS}"


def ui_host(uri: str) -> str:
    """Where the UI of a store is: at its server, or for a database file at ``LOCAL_UI``."""
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
    except ValueError:  # of the port, of the brackets of an IPv6 address
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
