"""MLflow as a team runs it: a server with logins, on PostgreSQL, for several studies at once."""

import base64
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import postgres
import pytest
import requests
import tiny
from mlflow import MlflowClient

from tests.tracking import servers
from toco.config import flatten
from toco.tracking import read_run_record

pytestmark = pytest.mark.timeout(1800)
SHORT, LONG = 120, 300
USER, PARENT = "team", "mlflow.parentRunId"


class Team:
    """A server, and the drivers of a user who has a login in environment variables."""

    def __init__(self, place, database):
        self.place, self._database = place, database
        # With characters that addresses encode; MLflow refuses those that are not ASCII.
        self.password = secrets.token_urlsafe(24) + "@/%"
        for folder in ("server", "artifacts", "home", "tmp"):
            (place / folder).mkdir()
        self._logins = place / "server" / "logins.ini"
        # Without the cache, the server derives a key from the password at each request.
        self._logins.write_text(
            f"[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 60\n"
            f"database_uri = {database.uri('logins')}\n"
        )
        self._port, self._server = None, None
        self.processes = []
        self.start_server()
        self._add_user()

    def start_server(self):
        number = len([*self.place.glob("server/*.log")])
        self._server, self.address = servers.start(
            self._command,
            self.place / "server" / f"{number}.log",
            self._port,
            MLFLOW_AUTH_CONFIG_PATH=str(self._logins),
            MLFLOW_AUTH_ADMIN_USERNAME="boss",
            MLFLOW_AUTH_ADMIN_PASSWORD=self._database.environment["PGPASSWORD"],
            MLFLOW_FLASK_SERVER_SECRET_KEY=secrets.token_hex(),
            **self._database.environment,
        )
        self._port = int(self.address.rpartition(":")[2])

    def _command(self, port):
        return [
            *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
            *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", self._database.uri("mlflow")),
            *("--artifacts-destination", str(self.place / "artifacts")),
        ]

    def _add_user(self):
        requests.post(
            f"{self.address}/api/2.0/mlflow/users/create",
            json={"username": USER, "password": self.password},
            auth=("boss", self._database.environment["PGPASSWORD"]),
            timeout=60,
        ).raise_for_status()

    def kill_server(self):
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()

    def environment(self, **login):
        """The environment of the user."""
        return {
            **os.environ,
            **tiny.environment(),
            "HOME": str(self.place / "home"),
            "TMPDIR": str(self.place / "tmp"),
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.password,
            **login,
        }

    def storage(self, num_steps):
        return self.place / f"results-{num_steps}"

    def run(self, num_steps):
        """Start a driver; its output goes to a file, see ``output``."""
        command = [sys.executable, "-m", "sweeps", "run", "layer_ablation", "--no-probe"]
        command += ["--concurrent", "1", "--tracking-uri", self.address]
        with (self.place / f"{num_steps}.log").open("w") as log:
            process = subprocess.Popen(
                [*command, *tiny.options(self.storage(num_steps), num_steps)],
                cwd=tiny.ROOT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def output(self, num_steps):
        return (self.place / f"{num_steps}.log").read_text()

    def sync(self, num_steps, **login):
        """Call the command that the driver has printed; return its status and output."""
        command = re.search(r"To fill it.*: (python .*)", self.output(num_steps))[1]
        done = subprocess.run(
            shlex.split(command),
            cwd=tiny.ROOT,
            env=self.environment(**login),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def wait_for(self, condition, seconds=900):
        """Wait, and look for the password in every command line of this machine meanwhile."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.password.encode() not in command_lines()
            assert time.monotonic() < deadline, [path.read_text() for path in self._logs()]
            time.sleep(0.5)

    def suspend(self, num_steps):
        """Suspend a training of a study, so that the study does not end; return its process."""
        found = []

        def is_suspended():
            for path in self.place.glob("tmp/toco-*-*-*"):
                _, key, process, _ = path.name.split("-", 3)
                if (self.storage(num_steps) / "runs" / key / "result.json").exists():
                    continue
                with suppress(ProcessLookupError):  # a training that ends now
                    os.kill(int(process), signal.SIGSTOP)
                    found.append(int(process))
                    return True
            return False

        self.wait_for(is_suspended)
        return found[0]

    def _logs(self):
        return sorted(self.place.rglob("*.log"))

    def close(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
        with suppress(ProcessLookupError):
            servers.stop(self._server)


def command_lines():
    found = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += path.read_bytes()
    return found


def files_with_password(team, *folders):
    """The files that have the password, as it is or as it is sent."""
    sent = base64.b64encode(f"{USER}:{team.password}".encode())
    found = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        with suppress(OSError):  # removed meanwhile
            if path.is_file() and not path.is_fifo():
                content = path.read_bytes()
                found += [path] if team.password.encode() in content or sent in content else []
    return found


@contextmanager
def a_team():
    with (
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder,
        postgres.Postgres() as database,
    ):
        team = Team(Path(folder), database)
        try:
            yield team
        finally:
            team.close()


def runs(client, experiment, condition=""):
    found = client.search_runs([experiment.experiment_id], condition)
    assert found.token is None
    return found


def num_begun(client):
    """The number of studies with a training of which MLflow has values."""
    experiment = client.get_experiment_by_name("layer_ablation")
    found = [] if experiment is None else runs(client, experiment)
    return len({run.data.tags.get(PARENT) for run in found if run.data.metrics} - {None})


def check_training(client, run, run_dir):
    """MLflow has every value of the run folder, once."""
    record = read_run_record(run_dir)
    assert run.info.status == "FINISHED"
    assert set(run.data.params) == set(flatten(record.config))
    expected = {(key, row.step): value for row in record.rows for key, value in row.values.items()}
    assert len(expected) > 100
    histories = [
        (metric.key, metric.step, metric.value)
        for key in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, key)
    ]
    stored = {(key, step): value for key, step, value in histories}
    assert len(histories) == len(stored)
    assert {place: stored.get(place) for place in expected} == expected
    assert {"final/cam_miou", "blocks/patch_similarity"} <= set(run.data.metrics)
    for folder in (run_dir / "pictures").iterdir():
        pictures = client.list_artifacts(run.info.run_id, f"pictures/{folder.name}")
        assert sorted(Path(item.path).name for item in pictures) == sorted(
            path.name for path in folder.iterdir()
        )


def test_two_studies_at_a_server_that_is_killed_and_started_again(undisturbed, monkeypatch):
    if (reason := postgres.missing()) is not None:
        pytest.skip(reason)
    expected = undisturbed(SHORT)
    with a_team() as team:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", team.password)
        client = MlflowClient(team.address)
        long, short = team.run(LONG), team.run(SHORT)

        def both_have_sent():
            assert short.poll() is None, team.output(SHORT)
            assert long.poll() is None, team.output(LONG)
            return num_begun(client) == 2

        team.wait_for(both_have_sent)
        team.kill_server()
        # Ray's own files are there while it runs; the paths of its sockets must be short.
        sessions = [*Path("/tmp").glob(f"toco-ray-{short.pid}-*/ray/session_2*")]
        assert len(sessions) == 1
        assert not files_with_password(team, team.place, *sessions)

        # A study that ends without the server is complete, and says what MLflow lacks.
        team.wait_for(lambda: short.poll() is not None)
        assert short.returncode == 0, team.output(SHORT)
        assert "MLflow could not be updated from" in team.output(SHORT)
        assert f"MLflow at {team.address} does not have everything" in team.output(SHORT)
        # One that ends later sends by itself what the server has missed.
        suspended = team.suspend(LONG)
        team.start_server()
        assert long.poll() is None
        os.kill(suspended, signal.SIGCONT)
        team.wait_for(lambda: long.poll() is not None)
        assert long.returncode == 0, team.output(LONG)
        assert "MLflow could not be updated from" in team.output(LONG)
        assert "does not have everything" not in team.output(LONG)
        assert f"MLflow: {team.address}/#/experiments/" in team.output(LONG)

        for login in ({"MLFLOW_TRACKING_PASSWORD": "wrong"}, {"MLFLOW_TRACKING_PASSWORD": ""}):
            status, text = team.sync(SHORT, **login)
            assert status == 1
            assert "401" in text
            assert "Traceback" not in text
        for _ in range(2):
            status, text = team.sync(SHORT)
            assert (status, text.splitlines()[0]) == (
                0,
                "MLflow has 6 trials of layer_ablation.",
            )
            assert team.password not in text

        experiment = client.get_experiment_by_name("layer_ablation")
        found = runs(client, experiment)
        parents = [run for run in found if PARENT not in run.data.tags]
        assert len(parents) == 2
        assert len(found) == 14
        for parent in parents:
            assert parent.info.status == "FINISHED"
            names = {item.path for item in client.list_artifacts(parent.info.run_id)}
            assert {"report.html", *tiny.TABLES} <= names
            children = runs(client, experiment, f"tags.{PARENT} = '{parent.info.run_id}'")
            (num_steps,) = {int(run.data.params["num_steps"]) for run in children}
            keys = {run.data.tags["key"]: run for run in children}
            assert len(children) == 6
            outcome = tiny.outcome(team.storage(num_steps))
            assert set(keys) == set(outcome["rows"])
            assert set(outcome["statuses"].values()) == {"finished"}
            for key, run in keys.items():
                check_training(client, run, team.storage(num_steps) / "runs" / key)
        assert tiny.outcome(team.storage(SHORT)) == expected
        assert not files_with_password(team, team.place, team._database.folder)
