"""The layer ablation as a job on a cluster of two nodes, one of which is lost on the way."""

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from toco.train.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))
import ray_drivers

pytestmark = pytest.mark.slow
RAYLET = "raylet"
"""Name of the process by which Ray knows a raylet."""
ROOT = Path(__file__).parents[2]
TINY = {
    "backbone.name": "vit_nano",
    "backbone.width": 16,
    "backbone.depth": 3,
    "backbone.num_heads": 2,
    "backbone.image_size_px": 32,
    "backbone.weights": "null",
    "views.crop_size_px": 32,
    "data.train_list": "train",
    "method.cam_scales": "[1.0]",
    "method.local_crop_size_px": 16,
    "method.decoder_width": 8,
    "method.projection.hidden_width": 16,
    "method.projection.bottleneck_width": 8,
    "method.projection.output_width": 16,
    "method.segmentation.start_step": 2,
    "method.energy.start_step": 2,
    "optim.warmup_steps": 2,
    "evaluate.size_px": 32,
    "evaluate.cam_scales": "[1.0]",
    "evaluate.cam_flip": "false",
    "evaluate.num_pictures": 0,
    "num_steps": 240,
    "evaluate_every": 20,
    "log_every": 10,
    "num_workers": 0,
    "device": "cpu",
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def cluster(tmp_path):
    """A head and two workers with a token of their own: the environment to use it, its dashboard,
    its processes.
    """
    dashboard, port = free_port(), free_port()
    environment = ray_drivers.environment(
        RAY_AUTH_TOKEN_PATH=tmp_path / "token", FAKE_ORDERS=tmp_path / "orders"
    )
    command = [
        sys.executable,
        "-u",
        str(ROOT / "cluster" / "ray_nodes.py"),
        "local",
        "--workers",
        "2",
    ]
    command += ["--port", str(port), "--dashboard-port", str(dashboard)]
    log = tmp_path / "cluster.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    # Ray finds clusters by their raylets: this is one of somebody else, which no job may take for
    # its own.
    other = [RAYLET, "-c", "import time; time.sleep(900)", "--gcs-address=127.0.0.1:9"]
    others_raylet = subprocess.Popen(other, executable=sys.executable)
    children = []
    try:
        wait_for(lambda: "worker 2: raylet" in log.read_text(), process, 60, log)
        children = psutil.Process(process.pid).children(recursive=True)
        yield (
            {**environment, "RAY_AUTH_MODE": "token"},
            f"http://127.0.0.1:{dashboard}",
            children,
            log,
            port,
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        # Everything it started goes with it, at the latest when its reaper has seen that.
        deadline = time.monotonic() + 20
        while any(map(is_alive, children)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for child in [process, others_raylet, *filter(is_alive, children)]:
            child.kill()


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, process, seconds, log):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended early: {log.read_text()}"
        assert time.monotonic() < deadline, f"it took too long: {log.read_text()}"
        time.sleep(0.1)


def lose_node(log):
    """Kill the raylet of the second worker and everything that runs on that node."""
    (line,) = (
        line
        for line in log.read_text().splitlines()
        if line.startswith("worker 2: raylet is process")
    )
    raylet = psutil.Process(int(line.split()[-1]))
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()


@pytest.mark.timeout(1200)
def test_a_job_on_a_cluster_that_loses_a_node(cluster, data_root, tmp_path):
    environment, dashboard, children, log, _ = cluster
    listening = {
        item.laddr.ip.removeprefix("::ffff:")
        for child in children
        for item in child.net_connections(kind="inet")
        if item.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{dashboard}/api/jobs/", timeout=10)  # noqa: S310

    storage = tmp_path / "results"
    command = [
        str(Path(sys.executable).with_name("ray")),
        "job",
        "submit",
        "--address",
        dashboard,
        "--working-dir",
        ".",
    ]
    command += [
        "--",
        "python",
        "sweeps/layer_ablation.py",
        "--recipe",
        "voc_deit_b",
        "--data",
        str(data_root),
    ]
    command += ["--layers", "0,1", "--seeds", "3", "--storage", str(storage)]
    command += [part for path, value in TINY.items() for part in ("--set", f"{path}={value}")]
    job_log = tmp_path / "job.log"

    def submit():
        with job_log.open("w") as file:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def both_have_begun():
        return len({path.parent for path in storage.glob("runs/*/checkpoints/step_*")}) == 2

    job = submit()
    try:
        # A busy cluster refuses jobs until its agents are up: the same command again.
        deadline = time.monotonic() + 120
        while not both_have_begun() and time.monotonic() < deadline:
            if job.poll() is not None and "please try again later" in job_log.read_text():
                time.sleep(2)
                job = submit()
            time.sleep(0.1)
        wait_for(both_have_begun, job, 300, job_log)
        lose_node(log)
        if job.wait(420) == 0:
            assert job_log.read_text().count("is started again: its worker process is gone") == 1
        else:
            # All nodes have one address here, so the driver may have joined the lost one. The same
            # command goes on.
            job = submit()
            assert job.wait(420) == 0, job_log.read_text()
    finally:
        job.kill()
    # Two blocks, and the base again.
    assert "3/3 trials done, 0 running, 0 failed, 0 waiting" in job_log.read_text()
    assert "worker 2 is lost" in log.read_text()

    (study,) = storage.glob("layer_ablation-*")
    cells = json.loads((study / "study.json").read_text())["cells"]
    for key in (key for cell in cells for key in cell["keys"]):
        run = RunFolder(storage / "runs" / key)
        assert run.result()["status"] == "finished"
        check_against_uninterrupted(run, tmp_path / key)
    assert (study / "report.html").is_file()


def check_against_uninterrupted(run, run_dir):
    """The same training without Ray, in one go: every number of every row is the same, but for
    durations.
    """
    ray_drivers.in_a_trials_place(ray_drivers.train_uninterrupted, run.config(), run_dir)
    expected = RunFolder(run_dir)
    assert [row_of(row) for row in run.metrics()] == [row_of(row) for row in expected.metrics()]
    assert run.result()["metrics"] == expected.result()["metrics"]


def row_of(row):
    return (
        row["step"],
        row["kind"],
        {name: value for name, value in row["values"].items() if "time" not in name},
    )


@pytest.mark.timeout(600)
def test_a_node_with_a_full_disk_costs_no_trial_its_result(cluster, tmp_path):
    """The other node takes what fails there, and soon everything.

    Nothing of it counts as the trials' own failures.
    """
    environment, _, _, _, port = cluster
    orders, storage = tmp_path / "orders", tmp_path / "results"
    orders.mkdir()
    (orders / "full").touch()
    study = ROOT / "tests" / "sweeps" / "core" / "fake_study.py"
    command = [
        sys.executable,
        str(study),
        "--storage",
        str(storage),
        "--address",
        f"127.0.0.1:{port}",
    ]
    done = subprocess.run(
        [*command, "--max-failures", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "4/4 trials done, 0 running, 0 failed, 0 waiting" in done.stderr
    host = socket.gethostname()
    assert f"is started again: {tempfile.gettempdir()}" in done.stderr
    assert (
        done.stderr.count(
            f"{host} gets no more trials: 2 failed there by the machine's fault, at last: "
        )
        == 1
    )
    failures = [
        json.loads(path.read_text()) for path in storage.glob("ledger/??/*.failures/*.json")
    ]
    assert [failure["host"] for failure in failures] == [host, host]
    assert all("has no room: No space left on device." in failure["reason"] for failure in failures)
