"""Studies in a real Slurm of three nodes, submitted as a user submits them."""

import re
import time

import pytest
import tiny

pytestmark = pytest.mark.timeout(1800)
SHORT, LONG = 120, 900


def sweeps(slurm, verb, storage, num_steps, *options):
    """Run a verb of the study on the login node and return what it prints."""
    command = ["python", "-m", "sweeps", verb, "layer_ablation", *options]
    return slurm.lab.on(
        "n0",
        *command,
        *tiny.options(storage, num_steps),
        cwd=tiny.ROOT,
        SLURM_CONF=str(slurm.conf),
        **tiny.environment(),
    )


def submit(slurm, storage, num_steps, *options):
    """Submit the study; return the number of the job."""
    text = sweeps(slurm, "submit", storage, num_steps, "--slurm", *options)
    return re.search(r"Submitted job (\d+): 3 drivers", text)[1]


def logs(storage, job):
    files = sorted(tiny.folder(storage).glob(f"slurm/{job}_*.log"))
    return {file.stem.rpartition("_")[2]: file.read_text() for file in files}


def wait_for_end(slurm, storage, job, seconds=900):
    """Wait until the job has left the queue; requeued tasks need not wait for Slurm's delay."""

    def has_ended():
        slurm.begin_now(job)
        return not slurm.tasks(job)

    try:
        slurm.wait_for(has_ended, seconds)
    except TimeoutError:
        raise AssertionError(logs(storage, job)) from None


def wait_for_trainings(slurm, storage, number, step=1):
    """Wait until so many trainings have a checkpoint, of ``step`` at least."""
    slurm.wait_for(
        lambda: sum(done >= step for done in tiny.newest_steps(storage).values()) >= number, 300
    )


def test_an_array_of_drivers_shares_a_study(slurm, undisturbed):
    storage = slurm.lab.shared / "shared"
    text = sweeps(slurm, "submit", storage, SHORT, "--slurm", "--array", "8")
    assert "--array 8 is more than the trials that are left can use: 6 drivers" in text
    job = re.search(r"Submitted job (\d+): 6 drivers of layer_ablation", text)[1]
    # Three nodes with a core each: three tasks wait, and the status says why.
    slurm.wait_for(lambda: any(state == "R" for state, *_ in slurm.tasks(job).values()), 60)
    slurm.wait_for(lambda: slurm.tasks(job)[6][2] in ("Resources", "Priority"), 60)
    status = sweeps(slurm, "status", storage, SHORT)
    assert f"Slurm job {job}, tasks: " in status
    assert re.search(r"3 pending: (no node is free that|jobs with a higher)", status)
    wait_for_end(slurm, storage, job)
    assert tiny.outcome(storage) == undisturbed(SHORT)
    assert not tiny.leases(storage)
    # Each training ran once, on one of three nodes.
    done = {
        task: re.findall(r"(\d+)/6 trials done", text) for task, text in logs(storage, job).items()
    }
    assert not [*storage.glob("ledger/??/*.failures*")]
    assert sum(bool(counts) for counts in done.values()) >= 3
    status = sweeps(slurm, "status", storage, SHORT)
    assert "6 of 6 trials have ended" in status
    text = sweeps(slurm, "submit", storage, SHORT, "--slurm", "--array", "8")
    assert text == "All 6 trials have ended; nothing is submitted.\n"


def test_time_limits_requeues_preemptions_and_lost_nodes_change_nothing(slurm, undisturbed):
    lab, storage = slurm.lab, slurm.lab.shared / "disturbed"
    # USR1 comes 60 s after the start of a task.
    limit = ["--time", "2", "--sbatch", "signal=B:USR1@60"]
    job = submit(slurm, storage, LONG, "--array", "3", *limit)
    wait_for_trainings(slurm, storage, 3, step=20)
    # An administrator requeues a task.
    slurm("scontrol", "requeue", f"{job}_1")
    # A job with a higher priority takes the node of another task for a moment.
    node = slurm.tasks(job)[2][1]
    slurm("sbatch", "-p", "high", "-w", node, "--output=/tmp/high.log", "--wrap=sleep 3")
    slurm.wait_for(lambda: slurm.tasks(job)[2][0] != "R", 90)
    slurm.wait_for(lambda: (slurm.begin_now(job), slurm.tasks(job)[2][0] == "R")[1], 120)
    # A node that is not the controller loses its power.
    lost = next(node for _, node, _ in slurm.tasks(job).values() if node in ("n1", "n2"))
    lab.off(lost)
    time.sleep(5)
    lab.boot(lost)
    slurm.start(lost)
    wait_for_end(slurm, storage, job)
    assert tiny.outcome(storage) == undisturbed(LONG)
    assert not tiny.leases(storage)
    texts = logs(storage, job)
    assert any("Stopping: 1 training writes a checkpoint" in text for text in texts.values())
    assert any("DUE TO JOB REQUEUE" in text for text in texts.values())
    assert any("DUE TO PREEMPTION" in text for text in texts.values())


def test_a_cancelled_study_does_not_come_back_and_continues_when_it_is_submitted(
    slurm, undisturbed
):
    storage = slurm.lab.shared / "cancelled"
    job = submit(slurm, storage, LONG, "--array", "3")
    wait_for_trainings(slurm, storage, 2, step=20)
    text = sweeps(slurm, "submit", storage, LONG, "--slurm", "--cancel")
    assert text == f"Cancelled {job}. Drivers that run store a checkpoint of each training.\n"
    slurm.wait_for(lambda: not slurm.tasks(job), 90)
    time.sleep(5)
    assert not slurm.tasks(job)
    assert not tiny.leases(storage)
    # Checkpoints between two evaluations: nothing of the present steps is lost.
    assert any(step % 20 for step in tiny.newest_steps(storage).values())
    status = sweeps(slurm, "status", storage, LONG)
    assert "No driver runs, and no submission of this study is in Slurm's queue" in status
    job = submit(slurm, storage, LONG, "--array", "3")
    wait_for_end(slurm, storage, job)
    assert tiny.outcome(storage) == undisturbed(LONG)


def test_one_driver_uses_all_nodes_of_a_job(slurm, undisturbed):
    storage = slurm.lab.shared / "ray"
    log = slurm.lab.shared / "ray.log"
    command = ["python", "-m", "sweeps", "run", "layer_ablation", "--concurrent", "3"]
    job = slurm.lab.on(
        "n0",
        *("sbatch", "--parsable", "--nodes=3", f"--output={log}", "cluster/slurm/ray.sbatch"),
        *(*command, *tiny.options(storage, SHORT)),
        cwd=tiny.ROOT,
        SLURM_CONF=str(slurm.conf),
        **tiny.environment(),
    ).strip()
    try:
        slurm.wait_for(lambda: not slurm("squeue", "-h", "-j", job, check=False), 600)
    except TimeoutError:
        raise AssertionError(log.read_text()) from None
    assert tiny.outcome(storage) == undisturbed(SHORT), log.read_text()
    assert "JobState=COMPLETED" in slurm("scontrol", "show", "job", job)
    # Nothing of Ray is left on any node.
    for name in slurm.names:
        assert not [line for _, line in slurm.lab.processes(name) if "ray" in line]


SIGNALS = """
import os, signal, sys, time
name = sys.argv[1]
def note(number, _):
    with open(sys.argv[2], "a") as file:
        file.write(f"{name} {signal.Signals(number).name}\\n")
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, note)
while True:
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("act", "reached"),
    [
        # docs/slurm.md says who gets which signal.
        ("scancel", {"child SIGTERM"}),
        ("scancel --batch --signal=USR1", set()),
        ("preempt", {"child SIGTERM"}),
    ],
)
def test_which_processes_a_signal_of_slurm_reaches(slurm, tmp_path, act, reached):
    record = slurm.lab.shared / f"signals-{act.split()[-1].strip('-=').replace('=', '')}"
    script = slurm.lab.shared / f"{record.name}.sbatch"
    program = slurm.lab.shared / "signals.py"
    program.write_text(SIGNALS)
    script.write_text(
        "#!/bin/bash\n#SBATCH --requeue\n#SBATCH --output=/tmp/signals.log\n"
        f"trap 'echo script SIGTERM >> {record}' TERM\n"
        f"trap 'echo script SIGUSR1 >> {record}' USR1\n"
        f"python3 {program} child {record} &\nwhile :; do wait; sleep 0.1; done\n"
    )
    job = slurm("sbatch", "--parsable", "-w", "n1", str(script)).strip()
    slurm.wait_for(lambda: "R" in slurm("squeue", "-h", "-j", job, "-o", "%t"), 60)
    time.sleep(3)
    if act == "preempt":
        slurm("sbatch", "-p", "high", "-w", "n1", "--output=/tmp/high.log", "--wrap=sleep 1")
    else:
        slurm(*act.split(), job)
    time.sleep(8)
    lines = set(record.read_text().splitlines()) if record.exists() else set()
    slurm("scancel", "--signal=KILL", "--full", job, check=False)
    slurm("scancel", job, check=False)
    assert lines == reached | ({"script SIGUSR1"} if "USR1" in act else {"script SIGTERM"})
