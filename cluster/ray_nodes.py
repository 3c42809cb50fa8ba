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
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from sweeps.core.plan import ray_environment
from sweeps.core.store.scratch import make_scratch_folder, scratch_folder, sweep_scratch
from toco.command_line import SETTINGS, Commands, run

DASHBOARD_PORT = 8265
HEAD_PORT = 6379


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
def local(workers: int, cpus: int, head_cpus: int, port: int, dashboard_port: int) -> None:
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
            n: cluster.add_node(num_cpus=cpus, temp_dir=f"{root}/{n}")
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


@main.command()
@click.option(
    "--ip",
    required=True,
    help="This machine's address in a network that only the cluster's machines are in.",
)
@click.option("--cpus", default=0, show_default=True, help="CPUs of this machine for trials.")
@click.option("--gpus", default=0, show_default=True, help="GPUs of this machine for trials.")
@click.option("--port", default=HEAD_PORT, show_default=True)
@click.option(
    "--dashboard-port",
    default=DASHBOARD_PORT,
    show_default=True,
    help="Where jobs are submitted, on loopback.",
)
def head(ip: str, cpus: int, gpus: int, port: int, dashboard_port: int) -> None:
    """Start the head of a cluster of several machines.

    Every other machine needs the head's token. A token is made if none exists yet.
    """
    ray_environment.ensure_token()
    click.echo(
        f"Copy {ray_environment.token_path()} to the same place on every machine, readable by its "
        "owner only."
    )
    # Before Ray starts, because Ray replaces this process and prints until it ends.
    click.echo(
        f"Ray starts the head at {ip}:{port}. When it reports that it is running: "
        f"{_how_to_submit(dashboard_port)}"
    )
    dashboard = ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)]
    _ray_start("--head", "--port", str(port), *dashboard, ip=ip, cpus=cpus, gpus=gpus)


@main.command()
@click.option("--head", "address", required=True, help="HOST:PORT of the head.")
@click.option(
    "--ip",
    help=(
        "This machine's address in the cluster's network.  [default: the one that reaches the head]"
    ),
)
@click.option("--cpus", type=int, help="CPUs for trials.  [default: all]")
@click.option("--gpus", type=int, help="GPUs for trials.  [default: all]")
def worker(address: str, ip: str | None, cpus: int | None, gpus: int | None) -> None:
    """Start a worker node on another machine of the cluster."""
    if not ray_environment.has_token():
        raise click.ClickException(
            f"There is no token at {ray_environment.token_path()}. Copy the head's to that place, "
            "readable by its owner only: without it the head refuses this node."
        )
    _ray_start("--address", address, ip=ip, cpus=cpus, gpus=gpus)


def _ray_start(*arguments: str, ip: str | None, cpus: int | None, gpus: int | None) -> NoReturn:
    """Become ``ray start --block``, which ends its node when the command is stopped.

    Ray opens its folder to all users of the machine, so the folder lies in a private one. The next
    start removes the remains of earlier ones.
    """
    sweep_scratch()
    folder = make_scratch_folder("ray", for_sockets=True) / "ray"
    options = {
        "--node-ip-address": ip,
        "--num-cpus": cpus,
        "--num-gpus": gpus,
        "--temp-dir": folder,
    }
    option_arguments = [
        part for name, value in options.items() if value is not None for part in (name, str(value))
    ]
    os.environ["RAY_AUTH_MODE"] = "token"
    _put_interpreter_on_path()
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start"]
    sys.stdout.flush()
    command = [*ray, *arguments, *option_arguments, "--block", "--disable-usage-stats"]
    os.execv(sys.executable, command)  # noqa: S606


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
