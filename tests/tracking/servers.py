"""MLflow's server, as a process of a test."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_START_S = 240.0
_PORTS_TRIED = 5


def free_port() -> int:
    """One that nobody listens on now; another process may take it a moment later."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(command: Callable[[int], Sequence[str]], log: Path) -> Iterator[str]:
    """Address of a server that answers; ``command`` makes its command line of a port, ``log`` gets
    what it prints.
    """
    process, address = start(command, log)
    try:
        yield address
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers; they have a session of their own."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start(
    command: Callable[[int], Sequence[str]], log: Path, port: int | None = None, **variables: str
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server, on a free port unless one is given; return it when it answers."""
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    for _ in range(_PORTS_TRIED):
        tried = port or free_port()
        with log.open("w") as file:
            process = subprocess.Popen(
                command(tried),
                env=environment,
                stdout=file,
                stderr=file,
                cwd=log.parent,
                start_new_session=True,
            )
        address = f"http://127.0.0.1:{tried}"
        deadline_s = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < deadline_s:
            if _answers(address):
                return process, address
            time.sleep(0.2)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if "address already in use" not in log.read_text().lower():
            break
    pytest.fail(f"The server did not come up: {log.read_text()[-2000:]}")


def _answers(address: str) -> bool:
    """Whether a real call is answered: the server says that it is healthy some time before."""
    try:
        page = f"{address}/api/2.0/mlflow/experiments/get?experiment_id=0"
        urllib.request.urlopen(page, timeout=30).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        return error.code == 401  # it asks for a login
    except (urllib.error.URLError, OSError):
        return False
    return True
