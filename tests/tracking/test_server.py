"""A real MLflow server on loopback; over HTTP some things are refused that sqlite takes (a tag that is no text)."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toco.tracking import ensure_parent, finish_parent, open_store, track_run

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    uri = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rpartition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("w") as log:
        # A session of its own, so that its workers end with it.
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )
    try:
        deadline_s = time.monotonic() + 120
        while time.monotonic() < deadline_s and process.poll() is None:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()  # noqa: S310
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        else:
            pytest.fail(f"The server did not come up: {(tmp_path / 'server.log').read_text()[-2000:]}")
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_over_http_as_over_sqlite(run_folder, server: str, tmp_path: Path):
    where: dict[str, Any] = {"tracking_uri": server, "experiment": "over http"}
    parent = ensure_parent(**where, study_id="s", run_name="s")
    training = run_folder()
    run_id = track_run(training.path, **where, parent_run_id=parent, tags={"cell": "aux_block=9"})
    training.add_rows(range(3, 6))
    training.add_evaluation(5, 0.5)
    training.end("finished", 5)
    assert track_run(training.path, **where, parent_run_id=parent) == run_id
    assert track_run(training.path, **where, parent_run_id=parent) == run_id
    client = open_store(**where).client
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.params["method.aux_block"] == "9"
    history = client.get_metric_history(run_id, "train/loss_total")
    assert sorted((metric.step, metric.value) for metric in history) == [(step, 2.0 / step) for step in range(1, 6)]
    fetched = client.download_artifacts(run_id, "pictures/step_00000005/scene_0001.png", str(tmp_path))
    assert Path(fetched).read_bytes() == (training.path / "pictures/step_00000005/scene_0001.png").read_bytes()
    (tmp_path / "report.html").write_text("<p>report</p>")
    finish_parent(parent, **where, files=[tmp_path / "report.html"], note="done")
    assert client.get_run(parent).info.status == "FINISHED"
