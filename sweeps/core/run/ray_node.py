"""One node of a Ray cluster: ``ray start`` as a child process, its signals, and its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil

from sweeps.core.plan import ray_environment
from sweeps.core.store.scratch import make_scratch_folder, sweep_scratch
from toco import interrupts
from toco.processes import signals_blocked

_LAUNCH = """
import os, signal, threading, time
# Ray's processes inherit the blocked signals of this thread: a scheduler that signals all of them
# must not end them before the trainings have stored their checkpoints. Another thread lets this
# process itself hear SIGTERM, after which Ray drains the node.
def hear():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    threading.Event().wait()
threading.Thread(target=hear, daemon=True).start()
# A node ends with the command that supervises it, however that ends. Ray's reaper ends the rest.
supervisor = os.getppid()
def end_with_supervisor():
    while os.getppid() == supervisor:
        time.sleep(1)
    os._exit(1)
threading.Thread(target=end_with_supervisor, daemon=True).start()
from ray.scripts.scripts import main
main()
"""
POLL_S = 0.5
"""Interval of looking at a node."""
_ENDING_S = 15.0
"""Longest wait, after the grace, for Ray to end its own processes."""
_HOPELESS = {
    "InvalidAuthToken": (
        "The head refuses the token of this machine. Copy the head's token to {token}, readable by "
        "its owner only."
    ),
    "Version mismatch": (
        "The head runs another version of Ray or Python. Install the same versions on all nodes: "
        "make setup."
    ),
}
"""Words in the output of ``ray start`` that no new attempt can change, and what to say."""

State = Literal["starting", "joined", "ended"]


class Signals:
    """The signals of this process.

    Attributes:
        received: The last signal; ``None`` before the first.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        for number in interrupts.SIGNALS:
            signal.signal(number, self._receive)

    def wait(self, seconds: float) -> None:
        """Wait for ``seconds`` or a signal."""
        deadline = time.monotonic() + seconds
        while self.received is None and time.monotonic() < deadline:
            time.sleep(0.1)

    def _receive(self, number: int, _frame: object) -> None:
        self.received = number


class RayNode:
    """A node that can be started again and again.

    Args:
        arguments: Options of ``ray start``.
        address: Host and port of the head.
        grace_s: Seconds for trainings to store their checkpoints.
    """

    def __init__(self, arguments: Sequence[str], address: str, grace_s: float) -> None:
        self._arguments = list(arguments)
        self._address = address
        self.grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path()
        # Processes of Ray seen so far: they may outlive `ray start`.
        self._started: set[psutil.Process] = set()

    def start(self) -> None:
        """Start the node, in a folder of its own.

        Ray opens its folder to all users of the machine, so it lies in a private one. The next
        start removes the remains of earlier ones.
        """
        sweep_scratch()
        folder = make_scratch_folder("ray", for_sockets=True)
        self._log = folder / "ray_start.log"
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{self.grace_s:g}",
        }
        command = [sys.executable, "-c", _LAUNCH, "start", *self._arguments]
        command += ["--temp-dir", str(folder / "ray"), "--block", "--disable-usage-stats"]
        with self._log.open("w") as log, signals_blocked(interrupts.ANNOUNCEMENTS):
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for this process alone
            )

    def poll(self) -> State:
        """Return whether the node is starting, has joined its cluster, or has ended."""
        if self._process is None or self._process.poll() is not None:
            return "ended"
        with suppress(psutil.NoSuchProcess):
            self._started |= set(psutil.Process(self._process.pid).children(recursive=True))
        return "joined" if "Ray runtime started" in self._output() else "starting"

    def problem(self) -> str | None:
        """Say why the node cannot join whatever happens; ``None`` where waiting may help.

        For a node that ended before it had joined.
        """
        for words, sentence in _HOPELESS.items():
            if words in self._output():
                return sentence.format(token=ray_environment.token_path())
        return None

    def described(self) -> str:
        """Describe this node and the cluster; empty where the head does not answer."""
        nodes = [node for node in self._state("node_table") if node["Alive"]]
        own = [node for node in nodes if str(self._log.parent) in node["RayletSocketName"]]
        if not own:
            return ""
        has = own[0]["Resources"]
        return (
            f" as {own[0]['NodeManagerAddress']}, with {has.get('CPU', 0):g} CPUs and "
            f"{has.get('GPU', 0):g} GPUs; it has {len(nodes)} nodes now"
        )

    def drain(self, signals: Signals) -> None:
        """Let the trainings of this node continue elsewhere; wait until it is idle.

        Ray does so after SIGTERM, and ends the node then.
        """
        assert self._process is not None  # noqa: S101 - a node that has joined
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self.grace_s + _ENDING_S
        while self.poll() != "ended" and time.monotonic() < deadline and not signals.received:
            signals.wait(POLL_S)

    def wait_for_drivers(self, signals: Signals) -> None:
        """Let the drivers on this machine stop; wait until no driver is connected to the head.

        Without the head, no driver could store the checkpoints of its trainings.
        """
        own_ip = self._address.rpartition(":")[0]
        deadline = time.monotonic() + self.grace_s
        for driver in self._drivers():
            if driver["DriverIPAddress"] == own_ip:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(driver["DriverPid"], signal.SIGTERM)
        while self._drivers() and time.monotonic() < deadline and not signals.received:
            signals.wait(POLL_S)

    def _drivers(self) -> list[dict[str, Any]]:
        return [job for job in self._state("job_table") if not job["IsDead"]]

    def end(self) -> None:
        """End all processes of the node that are left, and remove its folder."""
        self.poll()
        if self._process is not None and self._process.poll() is None:
            self._started.add(psutil.Process(self._process.pid))
        for process in self._started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait()
            shutil.rmtree(self._log.parent, ignore_errors=True)
        self._process, self._started = None, set()

    def _output(self) -> str:
        try:
            return self._log.read_text(errors="replace")
        except OSError:
            return ""

    def _state(self, table: str) -> list[dict[str, Any]]:
        """Read a table of the cluster's head; empty where the head does not answer."""
        os.environ["RAY_AUTH_MODE"] = "token"
        from ray._private.state import GlobalState
        from ray._raylet import GcsClientOptions  # type: ignore[attr-defined]

        state = GlobalState()
        try:
            state._initialize_global_state(
                GcsClientOptions.create(
                    self._address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
                )
            )
            rows: list[dict[str, Any]] = list(getattr(state, table)())
        except Exception:  # of Ray's many kinds; without an answer there is nothing to say
            return []
        finally:
            state.disconnect()
        return rows
