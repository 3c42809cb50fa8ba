"""A PostgreSQL of a test's own, on loopback, with a password."""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.tracking.servers import free_port

# PostgreSQL refuses to run as root. Debian's package makes this user.
_USER = "postgres" if os.geteuid() == 0 else None
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "log_statement": "all",
}


def _program(name):
    """The path of a program of the newest version; Debian has them outside of ``PATH``."""
    paths = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3])
    )
    return str(paths[-1]) if paths else shutil.which(name)


def missing():
    """Return why this machine cannot have a PostgreSQL for MLflow; ``None`` if it can."""
    for name in ("initdb", "postgres"):
        if _program(name) is None:
            return f"PostgreSQL needs {name} (apt-get install postgresql)"
    for module, package in (("psycopg", "psycopg[binary]"), ("flask_wtf", "flask-wtf")):
        if importlib.util.find_spec(module) is None:
            return f"MLflow on PostgreSQL with logins needs {module} (pip install '{package}')"
    return None


class Postgres:
    """A running PostgreSQL; a context that ends it and removes its files.

    ``environment`` has the password for clients, so that it is in no command line.
    """

    def __enter__(self):
        # Below a folder of pytest only root could read.
        self.folder = Path(tempfile.mkdtemp(dir="/tmp"))
        self.environment = {"PGPASSWORD": secrets.token_urlsafe(24)}
        self._process = None
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self._process is not None and self._process.poll() is None:
            # Ends without waiting for its clients.
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        shutil.rmtree(self.folder)

    def uri(self, database):
        return f"postgresql+psycopg://toco@127.0.0.1:{self.port}/{database}"

    def _start(self):
        if _USER:
            shutil.chown(self.folder, _USER)
        password = self.folder / "password"
        password.write_text(self.environment["PGPASSWORD"])
        self._data = self.folder / "data"
        options = ["-U", "toco", "-A", "scram-sha-256", "--no-sync", f"--pwfile={password}"]
        subprocess.run(
            [_program("initdb"), "-D", self._data, "-E", "UTF8", "--locale=C", *options],
            user=_USER,
            cwd=self.folder,
            capture_output=True,
            check=True,
        )
        password.unlink()
        self.port = free_port()
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", self._data, "-p", str(self.port), *settings],
                user=_USER,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        with self._connection() as connection:
            for database in ("mlflow", "logins"):
                connection.execute(f"CREATE DATABASE {database}")

    def _connection(self):
        import psycopg

        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(psycopg.OperationalError):
                return psycopg.connect(
                    host="127.0.0.1",
                    port=self.port,
                    user="toco",
                    dbname="postgres",
                    password=self.environment["PGPASSWORD"],
                    autocommit=True,
                )
            time.sleep(0.1)
        raise RuntimeError(f"PostgreSQL does not start: {(self.folder / 'log').read_text()}")
