"""Connect to a Ray cluster, or start one on this machine, and watch its head.

``sweeps.core.plan.ray_environment`` sets the environment before Ray is imported.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import ray
import ray._private.worker
from ray._private.services import find_gcs_addresses

from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.ray_environment import OBJECT_STORE_BYTES
from sweeps.core.run.failures import HeadLostError
from sweeps.core.store.scratch import scratch_folder, sweep_scratch
from toco import interrupts
from toco.processes import signals_blocked

logger = logging.getLogger(__name__)

_STDERR = 2
"""File descriptor of standard error."""
ASK_EVERY_S, PATIENCE_S = 2.0, 20.0
"""Seconds between two questions to the head, and how long it may not answer.

The patience ends before Ray's own: Ray ends the process after 60 s, with a message that does not
name the cause.
"""
UNWINDING_S = 5.0
"""Seconds for this process to end after its head was lost.

All the while the main thread may wait for an answer of the head. A new head may answer some seconds
later, and then Ray ends the process without a word about the cause.
"""


@contextmanager
def connected(address: str, log: Path) -> Iterator[None]:
    """Connect to the cluster at ``address``, or to a new one on this machine if it is ``local``.

    Args:
        address: Host and port, ``auto`` or ``local``.
        log: File that gets Ray's own messages, which would bury the progress of the study.

    Raises:
        ValueError: ``address`` is ``auto``, and several clusters run on this machine.
        ConnectionError: No cluster runs at ``address``, Ray did not start, or its head was lost in
            the block.
    """
    # Choose the folder of a new cluster, or check the address of a running one.
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        if address == "local":
            sweep_scratch()
            # Ray makes its folder readable to all users of the machine, and Tune stores pickles
            # there. So the folder lies inside a closed one.
            folder = stack.enter_context(scratch_folder("ray", for_sockets=True)) / "ray"
            options = {
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": str(folder),
            }
        if address == "auto":
            _refuse_several_clusters()
        # Connect, or start the cluster.
        try:
            # A scheduler may signal all processes of a job. Without its Ray, a driver could not
            # store the checkpoints of its trainings. Ray itself blocks SIGINT in the same way.
            with signals_blocked(interrupts.ANNOUNCEMENTS):
                ray.init(
                    address=address, log_to_driver=False, logging_level=logging.WARNING, **options
                )
        except SystemExit:
            # Raised by Ray's handler of SIGTERM, which is in place until ``take_again`` below.
            raise KeyboardInterrupt from None
        except ConnectionError:
            raise
        except (
            Exception
        ) as error:  # Ray raises a plain one where its processes do not answer in time
            raise ConnectionError(
                f"Ray did not start: {error}. A busy machine may cause this. The same command goes "
                "on from here."
            ) from error
        stack.enter_context(_messages_in(log))
        # Watch the head while the block runs.
        head = HeadWatch(
            ray.get_runtime_context().gcs_address,
            _any_node_alive if address == "local" else None,
            partial(_crashes_into, log),
        )
        try:
            interrupts.reinstall_handlers()
            head.start()
            yield
        except KeyboardInterrupt:
            if head.is_lost:
                raise HeadLostError(head.loss) from None
            raise
        finally:
            head.close()
            # With a lost head, ``ray.shutdown`` would end this process with a message of Ray.
            if not head.is_lost:
                _shut_down()
            # The workers of this machine ended with the cluster and could not remove their folders.
            sweep_scratch()


@contextmanager
def _messages_in(log: Path) -> Iterator[None]:
    """Append what Ray would print to the file ``log``, within the block."""
    log.parent.mkdir(parents=True, exist_ok=True)
    ray_logger = logging.getLogger("ray")
    handler = logging.FileHandler(log, delay=True, encoding="utf-8")
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s {socket.gethostname()} {os.getpid()} %(message)s")
    )
    printing = ray_logger.handlers[:]
    print_lines = ray._private.worker.print_to_stdstream

    def keep(data: Mapping[str, Any], *_: object, **__: object) -> None:
        for line in data["lines"]:
            ray_logger.warning("(%s) %s", data["pid"], line)

    ray_logger.handlers[:] = [handler]
    ray._private.worker.print_to_stdstream = keep
    try:
        yield
    finally:
        ray._private.worker.print_to_stdstream = print_lines
        ray_logger.handlers[:] = printing
        handler.close()


def _crashes_into(log: Path) -> None:
    """Append to ``log`` what Ray's own code writes to standard error from now on.

    Ray ends a process that has lost its head, at the latest when a new one answers, with a stack
    trace. The messages of this program go on to standard error.
    """
    with suppress(OSError, ValueError):
        if sys.stderr.fileno() != _STDERR:
            return
        sys.stderr.flush()
        sys.stderr = os.fdopen(os.dup(_STDERR), "w", buffering=1, errors="backslashreplace")
        with log.open("a") as file:
            os.dup2(file.fileno(), _STDERR)


def _shut_down() -> None:
    """Disconnect from the cluster. End the processes of a cluster that this process started."""
    node = ray._private.worker._global_node
    infos: Iterable[Any] = () if node is None else chain(*node.all_processes.values())
    processes = [info.process for info in infos]
    descendants: list[psutil.Process] = []
    for process in processes:
        # Ray would wait a second for each of them to end by SIGTERM, which is blocked there.
        process.terminate = process.kill
        with suppress(psutil.NoSuchProcess):
            descendants += psutil.Process(process.pid).children(recursive=True)
    ray.shutdown()
    # Ray's agents would live on for a minute.
    for descendant in descendants:
        with suppress(psutil.NoSuchProcess):
            descendant.kill()


def _refuse_several_clusters() -> None:
    """Refuse ``auto`` where several clusters run on this machine.

    Ray would take any of them, even one of another user.

    Raises:
        ValueError: Several clusters run here.
    """
    addresses = sorted(find_gcs_addresses())
    if len(addresses) > 1 and not os.environ.get("RAY_ADDRESS"):
        raise ValueError(
            f"--address auto expects one Ray cluster on this machine; {len(addresses)} run here: "
            f"{', '.join(addresses)}. Name one: --address {addresses[0]}"
        )


def _any_node_alive() -> bool:
    return any(node["Alive"] for node in ray.nodes())


def check_resources(launch: Launch, *, may_grow: bool) -> None:
    """Check that some node can hold a trial.

    Args:
        launch: Has the resources of a trial.
        may_grow: Nodes may still join, so that a warning is enough.

    Raises:
        ValueError: No node can hold a trial.
    """
    nodes = ray.nodes()
    if any(fits(launch, node) for node in nodes):
        return
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    largest = ", ".join(
        f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in alive
    )
    message = (
        f"A trial needs {launch.cpus_per_trial:g} CPUs and {launch.gpus_per_trial:g} GPUs, but the "
        f"nodes have {largest}. Lower --cpus-per-trial or --gpus-per-trial, or add a node."
    )
    if not may_grow:
        raise ValueError(message)
    logger.warning("%s Waiting for a node that can.", message)


def fits(launch: Launch, node: Mapping[str, Any]) -> bool:
    """Return whether a node of ``ray.nodes`` is alive and can hold a trial of ``launch``."""
    has, needed = node["Resources"], {"CPU": launch.cpus_per_trial, "GPU": launch.gpus_per_trial}
    return bool(node["Alive"]) and all(
        has.get(kind, 0) >= number for kind, number in needed.items()
    )


class HeadWatch:
    """Watch the head of the cluster; interrupt the main thread when the head is lost.

    Args:
        address: Host and port of the head.
        has_nodes: Returns whether the cluster has a living node. A local Ray is lost with its only
            node, because its head waits for other nodes without end. ``None`` where nodes may join.
        on_loss: Called once the head is lost.

    Attributes:
        is_lost: Whether the head is lost.
    """

    def __init__(
        self,
        address: str,
        has_nodes: Callable[[], bool] | None = None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = address
        self._has_nodes = has_nodes
        self._on_loss = on_loss
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray-head", daemon=True)
        self.is_lost = False

    @property
    def loss(self) -> str:
        """The message about a lost head."""
        return f"Ray's head at {self._address} is lost. The same command goes on from here."

    def start(self) -> None:
        """Start the thread that asks the head."""
        self._thread.start()

    def close(self) -> None:
        """Stop asking.

        If the head is lost, end Ray's processes on this machine, which wait for it.
        """
        self._closing.set()
        if self.is_lost:
            _kill_children()

    def answers(self) -> bool:
        """Return whether the head accepts connections, and has a node if it needs one.

        Raises:
            ConnectionRefusedError: The head's machine answers, and the head has ended.
        """
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_EVERY_S).close()
        except ConnectionRefusedError:
            raise
        except OSError:
            return False
        return self._has_nodes is None or self._has_nodes()

    def _watch(self) -> None:
        answered = time.monotonic()
        while not self._closing.wait(ASK_EVERY_S):
            try:
                if self.answers():
                    answered = time.monotonic()
                elif time.monotonic() - answered > PATIENCE_S:
                    break
            except ConnectionRefusedError:
                # A new head at the same address would let Ray end this process with a stack trace.
                break
        else:
            return
        self._on_loss()
        self.is_lost = True
        interrupts.interrupt_main()
        threading.Event().wait(UNWINDING_S)
        # This thread would have ended with the process. So the main thread still waits for the head
        # or for MLflow.
        if not self._closing.is_set():
            _kill_children()
        print(f"Error: {self.loss}", file=sys.stderr, flush=True)  # noqa: T201 - no logger any more
        os._exit(1)


def _kill_children() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
