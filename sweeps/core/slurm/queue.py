"""Slurm's commands: submit, look into the queue, cancel. Their errors become sentences."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LIMIT_S = 60.0
"""Longest wait for a command of Slurm; a controller under load takes tens of seconds."""
_STATES = {
    "PD": "pending",
    "R": "running",
    "CF": "starting",
    "CG": "ending",
    "S": "suspended",
    "RQ": "requeued",
    "RH": "held after a requeue",
}
_REASONS = {
    "Resources": "no node is free that has what a task asks for",
    "Priority": "jobs with a higher priority wait, too",
    "BeginTime": "Slurm starts a task again only some minutes after a requeue",
    "JobHeldUser": "its user holds it; scontrol release JOB lets it start",
    "JobHeldAdmin": "an administrator holds it",
    "Dependency": "it waits for another job",
    "DependencyNeverSatisfied": "the job that it waits for has failed, so it never starts",
    "JobArrayTaskLimit": "the array may run no more tasks at once",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "PartitionTimeLimit": "it asks for more time than its partition allows",
    "PartitionNodeLimit": "it asks for more nodes than its partition allows",
    "PartitionConfig": "it asks for more than its partition has",
    "Reservation": "it waits for its reservation",
    "NodeDown": "a node that it asks for is down",
    "Licenses": "it waits for a license",
    "Cleaning": "its former run is being cleaned up",
    "launch failed requeued held": (
        "its node could not start it, so Slurm holds it; scontrol release JOB lets it try again"
    ),
}
_REASON_BEGINNINGS = {
    "ReqNodeNotAvail": "the nodes that it asks for are down, drained or reserved",
    "Nodes required for job are DOWN": "the nodes that it asks for are down, drained or reserved",
    "QOS": "a limit of its QOS is reached",
    "Assoc": "a limit of its account is reached",
    "MaxCpuPerAccount": "a limit of its account is reached",
    "Invalid": "its account, QOS or partition is not valid",
}


class SlurmError(ValueError):
    """A command of Slurm failed; the message says what it said."""


@dataclass(frozen=True, slots=True)
class QueuedTasks:
    """Tasks of an array that are in the queue for the same reason.

    Attributes:
        number: Number of tasks.
        state: Slurm's state, in a word.
        reason: Slurm's reason for a pending task; empty for others.
    """

    number: int
    state: str
    reason: str

    @property
    def text(self) -> str:
        """Description in words, with Slurm's own word for the reason."""
        if not self.reason:
            return f"{self.number} {self.state}"
        return f"{self.number} {self.state}: {explained(self.reason)} ({self.reason})"


def explained(reason: str) -> str:
    """Explain Slurm's reason why a task does not run.

    >>> explained("QOSMaxJobsPerUserLimit")
    'a limit of its QOS is reached'
    """
    if reason in _REASONS:
        return _REASONS[reason]
    for beginning, text in _REASON_BEGINNINGS.items():
        if reason.startswith(beginning):
            return text
    return "Slurm gives a reason that is not known here"


def submit(script: str) -> str:
    """Submit an sbatch file, given as text; return the number of the job.

    Raises:
        SlurmError: Slurm refuses it, prints no number, or this machine has no Slurm.
    """
    answer = _call(["sbatch", "--parsable"], script, "submit the study")
    # A site may print lines of its own before. With several clusters, a name follows the number.
    numbers = re.findall(r"^(\d+)(?:;.*)?$", answer, re.MULTILINE)
    if not numbers:
        raise SlurmError(
            f"sbatch did not print the number of the job: expected a line like 41, got {answer!r}. "
            "squeue --me shows whether the study is queued."
        )
    return str(numbers[-1])


def tasks_of(jobs: Iterable[str]) -> dict[str, list[QueuedTasks]]:
    """Return the tasks in the queue, of those of ``jobs`` that are there.

    Raises:
        SlurmError: Slurm does not answer, or this machine has no Slurm.
    """
    jobs = tuple(jobs)
    if not jobs:
        return {}
    # All of the user's jobs: the name of a job that has ended long ago would be an error.
    command = ["squeue", "--me", "--noheader", "--array", "--format=%F|%t|%r"]
    lines = _call(command, None, "look into the queue").splitlines()
    counts = Counter(tuple(line.strip().split("|", 2)) for line in lines if line.count("|") >= 2)
    found: dict[str, list[QueuedTasks]] = {}
    for (job, state, reason), number in sorted(counts.items()):
        is_waiting = state in ("PD", "RH")
        tasks = QueuedTasks(number, _STATES.get(state, state), reason if is_waiting else "")
        found.setdefault(job, []).append(tasks)
    return {job: found[job] for job in jobs if job in found}


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs.

    Raises:
        SlurmError: Slurm refuses, or this machine has no Slurm.
    """
    _call(["scancel", *jobs], None, "cancel the jobs")


def _call(command: Sequence[str], text: str | None, purpose: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a command of Slurm, without a shell
            command, input=text, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]} was not found, so this machine cannot {purpose}. Slurm's commands are "
            "on its login nodes."
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"Slurm's controller gave no answer to {command[0]} in {_LIMIT_S:g} s. squeue --me "
            "shows what it has done nevertheless; try again later."
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise SlurmError(f"Slurm did not {purpose}: {said}")
    return done.stdout
