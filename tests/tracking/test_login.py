"""A server with a login that fails in the middle: a sentence, and the password in nothing that is
shown or kept.
"""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from toco.__main__ import main
from toco.tracking import Tracker, TrackingWarning, open_store, track_run

ENCODED, PASSWORD = "s%40cr%2Fe%3At%3F", "s@cr/e:t?"


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every request with 403, and keeps what it was asked with."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.headers.get("Authorization", ""))
        body = json.dumps(
            {"error_code": "PERMISSION_DENIED", "message": "Permission denied"}
        ).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - named by the library

    def log_message(self, *_):
        pass


@pytest.fixture
def address(monkeypatch) -> Iterator[str]:
    """Of a server that refuses; with a login."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    Refusing.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:{ENCODED}@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def without_password(text: str) -> bool:
    return not any(part in text for part in (ENCODED, PASSWORD, "s@cr", "s%40cr"))


def test_a_login_in_the_address_is_sent_and_not_shown(run_folder, address: str):
    said = CliRunner().invoke(main, ["track", str(run_folder().path), "--tracking-uri", address])
    assert said.exit_code == 1
    assert said.output.startswith(f"Error: MLflow at http://{address.rpartition('@')[2]} failed: ")
    assert "Permission denied" in said.output
    assert said.output.count("\n") == 1
    assert without_password(said.output)
    assert Refusing.asked[0] == "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()


def test_a_warning_in_the_middle_of_a_study_has_no_password(run_folder, address: str):
    with pytest.warns(TrackingWarning) as caught:
        assert Tracker(address, "study").track(run_folder().path) is None
    assert all(without_password(str(warning.message)) for warning in caught)


def test_a_store_that_is_lost_in_the_middle_is_a_sentence(run_folder, sqlite_uri: str, monkeypatch):
    def lost(*_, **__):
        raise MlflowException(
            f"API request to http://me:{ENCODED}@host:5000/api?token=x failed\nwith many lines"
        )

    monkeypatch.setattr(MlflowClient, "log_batch", lost)
    training = run_folder()
    said = CliRunner().invoke(main, ["track", str(training.path), "--tracking-uri", sqlite_uri])
    assert said.exit_code == 1
    assert (
        "failed: API request to http://host:5000/api failed with many lines. Check that it runs"
        in said.output
    )
    assert without_password(said.output)


def test_a_disk_that_is_full_is_a_sentence(run_folder, sqlite_uri: str, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    with pytest.raises(ConnectionError, match=r"failed: OSError: .*No space left on device"):
        track_run(run_folder().path, open_store(sqlite_uri, "full disk"))
