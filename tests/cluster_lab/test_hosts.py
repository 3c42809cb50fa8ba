"""The commands of docs/cluster.md on three hosts, and machines that announce their end."""

import re
import signal

import pytest
import tiny
from ray_hosts import HEAD, WORKERS, Cluster, wait_for

pytestmark = pytest.mark.timeout(1800)
SHORT, LONG = 120, 900


@pytest.fixture(scope="module")
def cluster(lab, tmp_path_factory):
    lab.boot(HEAD, *WORKERS)
    return Cluster(lab, tmp_path_factory.mktemp("logs"))


def submit(cluster, storage, num_steps):
    """Submit the study as a job, on the head's host; its output is in a log of its name."""
    return cluster.lab.start(
        HEAD,
        *("ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--working-dir", "."),
        *("--", "python", "sweeps/layer_ablation.py", *tiny.options(storage, num_steps)),
        log=cluster.logs / f"{storage.name}.log",
        cwd=tiny.ROOT,
        RAY_AUTH_MODE="token",
        PYTHONUNBUFFERED="1",
        **tiny.environment(),
    )


def nodes_on(lab, name):
    """The processes of Ray, and of the command that supervises it, on a host."""
    return [line for _, line in lab.processes(name) if "ray" in line]


def test_a_study_is_a_job_of_the_cluster(cluster, undisturbed):
    storage = cluster.lab.shared / "job"
    job = submit(cluster, storage, SHORT)
    assert job.wait(600) == 0, cluster.log("job")
    assert tiny.outcome(storage) == undisturbed(SHORT)
    log = cluster.log("job")
    # What is not known is not predicted, and nothing of Ray is between the lines of the study.
    assert "The time is unknown: the trainings run on a cluster" in log
    study = log[log.index("Table 5 (a)") : log.index("Report: ")]
    assert not re.search(r"raylet|WARNING|util\.py", study)


def test_machines_that_announce_their_end_cost_no_step(cluster, undisturbed):
    lab, storage = cluster.lab, cluster.lab.shared / "announced"
    job = submit(cluster, storage, LONG)
    wait_for(lambda: sum(step >= 20 for step in tiny.newest_steps(storage).values()) >= 2, 300)
    # A worker, as by a cloud: its training moves, and the command ends with its node.
    lab.signal("w1", "ray_nodes.py worker", signal.SIGTERM)
    wait_for(
        lambda: "continues on another node: w1 is about to end" in cluster.log("announced"), 60
    )
    wait_for(lambda: not nodes_on(lab, "w1"), 60)
    cluster.join("w1")
    wait_for(lambda: cluster.log("w1").count("Joined") == 2, 90)
    # The head: the driver of the job stops first.
    lab.signal(HEAD, "ray_nodes.py head", signal.SIGTERM)
    assert job.wait(120) != 0
    wait_for(lambda: not nodes_on(lab, HEAD), 60)
    log = cluster.log("announced")
    assert re.search(r"Stopping: \d trainings? writes? a checkpoint after the present step", log), (
        log
    )
    assert not tiny.leases(storage)
    assert any(step % 20 for step in tiny.newest_steps(storage).values())
    # Started again, the workers join by themselves, and the same command continues.
    cluster.start_head()
    wait_for(lambda: all(cluster.log(name).count("Joined") >= 2 for name in WORKERS), 120)
    again = submit(cluster, storage, LONG)
    assert again.wait(900) == 0, cluster.log("announced")
    assert tiny.outcome(storage) == undisturbed(LONG)
