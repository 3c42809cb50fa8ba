"""Start the nodes of a Ray cluster with token authentication, and stop them with Ctrl-C.

\b
    python cluster/ray_nodes.py local --workers 2            # head and two workers, on loopback
    python cluster/ray_nodes.py head --ip 10.0.0.1           # on the first of several machines
    python cluster/ray_nodes.py worker --head 10.0.0.1:6379  # on each of the others

Each command stays in the foreground. When it is stopped, it ends the processes that it started and
no others (``ray stop`` would end every Ray process on the machine). docs/cluster.md says how to
submit a study.
"""  # noqa: D301 - click prints a paragraph after \b as it is

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from sweeps.core.plan import ray_environment
from sweeps.core.run.ray_node import POLL_S, RayNode, Signals
from sweeps.core.store.scratch import scratch_folder, sweep_scratch
from toco import interrupts
from toco.command_line import SETTINGS, Commands, run

DASHBOARD_PORT = 8265
HEAD_PORT = 6379
NODE_PORTS = 20000
NUM_NODE_PORTS = 300
"""Ports of a node: ten of its own processes, the others of workers and drivers."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
"""Pauses before a node joins again, doubled each time; a head is up again within a minute or so."""


@click.group(cls=Commands, help=__doc__, context_settings=SETTINGS)
def main() -> None:
    """Commands."""


@main.command()
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(0),
    help="Worker nodes besides the head.",
)
@click.option(
    "--cpus", default=1, show_default=True, type=click.IntRange(1), help="CPUs of each worker."
)
@click.option(
    "--gpus", default=0, show_default=True, type=click.IntRange(0), help="GPUs of each worker."
)
@click.option(
    "--head-cpus",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="CPUs of the head for trials.",
)
@click.option("--port", default=HEAD_PORT, show_default=True)
@click.option(
    "--dashboard-port", default=DASHBOARD_PORT, show_default=True, help="Where jobs are submitted."
)
def local(
    workers: int, cpus: int, gpus: int, head_cpus: int, port: int, dashboard_port: int
) -> None:
    """Start a head and workers on this machine; they listen on loopback only."""
    ray_environment.prepare("local")
    _put_interpreter_on_path()
    # Imported late, because Ray reads its environment on import. `ray start` refuses workers on
    # loopback; this class does not.
    from ray.cluster_utils import Cluster

    head_options = {
        "num_cpus": head_cpus,
        "gcs_server_port": port,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": dashboard_port,
        # Any free port: where another study runs on this machine, Ray's default port is in use, and
        # then all jobs are refused.
        "dashboard_agent_listen_port": 0,
    }
    sweep_scratch()
    with scratch_folder("ray", for_sockets=True) as root:
        # Ray writes the cluster's address to its default folder, which may not exist, and which
        # several clusters would share.
        os.environ["RAY_TMPDIR"] = str(root)
        Path(root, "ray").mkdir()
        head_options["temp_dir"] = f"{root}/0"
        cluster = Cluster(initialize_head=True, head_node_args=head_options, shutdown_at_exit=True)
        # One folder for each node, as on separate machines: in a shared folder, a lost node deletes
        # the code of the jobs.
        nodes = {
            n: cluster.add_node(num_cpus=cpus, num_gpus=gpus, temp_dir=f"{root}/{n}")
            for n in range(1, workers + 1)
        }
        # Where several clusters run on a machine, a job finds its own by this file. Without it, the
        # job joins any of them.
        for number in range(workers + 1):
            Path(root, str(number), "ray_current_cluster").write_text(cluster.address)
        # Set after the nodes start, because for each of them Ray sets its own handler, which would
        # end this process as a failure.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            click.echo(f"Cluster at {cluster.address}. {_how_to_submit(dashboard_port)}")
            sys.stdout.flush()
            _watch(
                {number: node.all_processes["raylet"][0].process for number, node in nodes.items()}
            )
        finally:
            cluster.shutdown()


_PORTS = click.option(
    "--ports",
    default=NODE_PORTS,
    show_default=True,
    type=click.IntRange(1024, 65535 - NUM_NODE_PORTS),
    help=f"First of the {NUM_NODE_PORTS} ports of this node; docs/cluster.md lists them.",
)
_GRACE = click.option(
    "--grace",
    default=25.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds for trainings to store their checkpoints after SIGTERM or SIGUSR1.",
)


@main.command()
@click.option(
    "--ip",
    required=True,
    help="This machine's address in a network that only the cluster's machines are in.",
)
@click.option(
    "--cpus",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="CPUs of this machine for trials.",
)
@click.option(
    "--gpus",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="GPUs of this machine for trials.",
)
@click.option("--port", default=HEAD_PORT, show_default=True)
@click.option(
    "--dashboard-port",
    default=DASHBOARD_PORT,
    show_default=True,
    help="Where jobs are submitted, on loopback.",
)
@_PORTS
@_GRACE
def head(
    ip: str, cpus: float, gpus: float, port: int, dashboard_port: int, ports: int, grace: float
) -> None:
    """Start the head of a cluster of several machines.

    Every other machine needs the head's token. A token is made if none exists yet. If the head's
    processes end, they are started again.
    """
    ray_environment.ensure_token()
    click.echo(
        f"Copy {ray_environment.token_path()} to the same place on every machine, readable by its "
        "owner only."
    )
    # A host that is cut off is noticed after about 30 s, not after Ray's 65 s.
    os.environ.setdefault("RAY_health_check_timeout_ms", "3000")
    # `ray job stop` ends a driver after this time, if it has not ended by itself.
    os.environ.setdefault("RAY_JOB_STOP_WAIT_TIME_S", f"{grace:g}")
    address = f"{ip}:{port}"
    arguments = [
        *("--head", "--port", str(port), "--ray-client-server-port", str(ports + 6)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)),
        *_node_arguments(ip, cpus, gpus, ports),
    ]
    _supervise(
        RayNode(arguments, address, grace),
        lambda: f"Head at {address} is ready. {_how_to_submit(dashboard_port)}",
        f"The head at {address} has ended, and is started again. Workers join again; give the "
        "command of each study again.",
        is_head=True,
    )


@main.command()
@click.option("--head", "address", required=True, help="HOST:PORT of the head.")
@click.option(
    "--ip",
    help=(
        "This machine's address in the cluster's network.  [default: the one that reaches the head]"
    ),
)
@click.option("--cpus", type=click.FloatRange(0), help="CPUs for trials.  [default: all]")
@click.option("--gpus", type=click.FloatRange(0), help="GPUs for trials.  [default: all]")
@_PORTS
@_GRACE
def worker(
    address: str,
    ip: str | None,
    cpus: float | None,
    gpus: float | None,
    ports: int,
    grace: float,
) -> None:
    """Join this machine to a cluster, and again after a lost head or network, until Ctrl-C.

    SIGTERM and SIGUSR1, by which schedulers and clouds announce the end of a machine, let its
    trainings store their checkpoints and continue on other nodes.
    """
    if not ray_environment.has_token():
        raise click.ClickException(
            f"There is no token at {ray_environment.token_path()}. Copy the head's to that place, "
            "readable by its owner only: without it the head refuses this node."
        )
    node = RayNode(["--address", address, *_node_arguments(ip, cpus, gpus, ports)], address, grace)
    _supervise(
        node,
        lambda: f"Joined the cluster at {address}{node.described()}.",
        f"This node has left the cluster at {address}, or the head does not answer. Joining again.",
        is_head=False,
    )


def _node_arguments(
    ip: str | None, cpus: float | None, gpus: float | None, ports: int
) -> list[str]:
    """Return the options of ``ray start`` for resources and ports."""
    options = {
        "--node-ip-address": ip,
        "--num-cpus": None if cpus is None else f"{cpus:g}",
        "--num-gpus": None if gpus is None else f"{gpus:g}",
        "--object-store-memory": ray_environment.OBJECT_STORE_BYTES,
        "--node-manager-port": ports,
        "--object-manager-port": ports + 1,
        "--runtime-env-agent-port": ports + 2,
        "--dashboard-agent-grpc-port": ports + 3,
        "--dashboard-agent-listen-port": ports + 4,
        "--metrics-export-port": ports + 5,
        "--min-worker-port": ports + 10,
        "--max-worker-port": ports + NUM_NODE_PORTS - 1,
    }
    return [
        part for name, value in options.items() if value is not None for part in (name, str(value))
    ]


def _supervise(node: RayNode, joined: Callable[[], str], left: str, *, is_head: bool) -> None:
    """Keep a node in its cluster until a signal.

    Args:
        node: The node.
        joined: Returns the sentence about a node that has joined.
        left: The sentence about a node that has ended.
        is_head: Whether it is the head, which waits for its drivers after a signal.
    """
    _put_interpreter_on_path()
    signals = Signals()
    pause_s = SHORTEST_PAUSE_S
    said = ""
    while signals.received is None:
        node.start()
        while (state := node.poll()) == "starting" and signals.received is None:
            time.sleep(POLL_S)
        if state == "joined":
            click.echo(joined())
            said, pause_s = "", SHORTEST_PAUSE_S
            while node.poll() == "joined" and signals.received is None:
                time.sleep(POLL_S)
        elif state == "ended" and (problem := node.problem()) is not None:
            node.end()
            raise click.ClickException(problem)
        if signals.received is not None:
            break
        node.end()
        if said != left:
            click.echo(left)
            said = left
        signals.wait(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    if signals.received in interrupts.ANNOUNCEMENTS and node.poll() == "joined":
        click.echo(
            f"{signal.Signals(signals.received).name}: trainings store their checkpoints, for at "
            f"most {node.grace_s:g} s. Ctrl-C ends at once."
        )
        signals.received = None
        if is_head:
            node.wait_for_drivers(signals)
        else:
            node.drain(signals)
    node.end()


def _put_interpreter_on_path() -> None:
    """Make this interpreter the ``python`` of jobs.

    A job finds its interpreter in the PATH of the head node.
    """
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )


def _watch(raylets: dict[int, subprocess.Popen[bytes]]) -> None:
    """Print each worker node's process, and each node that is lost, until Ctrl-C."""
    for number, raylet in raylets.items():
        click.echo(f"worker {number}: raylet is process {raylet.pid}")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(1)
            for number in [
                number for number, raylet in raylets.items() if raylet.poll() is not None
            ]:
                click.echo(f"worker {number} is lost")
                del raylets[number]


def _how_to_submit(dashboard_port: int) -> str:
    submit = f"ray job submit --address http://127.0.0.1:{dashboard_port} --working-dir ."
    return (
        "Submit a study from the repository's root on this machine:\n"
        f"  export RAY_AUTH_MODE=token\n  {submit} -- python sweeps/layer_ablation.py"
    )


if __name__ == "__main__":
    run(main)
