"""Count the updates that are computed again after a preemption.

    python -m benchmarks preemptions --out benchmarks/results/preemptions.json

A study of four short trainings, two at once, is run as a user runs it. At seeded moments SIGTERM
reaches all processes of its job, as from a scheduler, and the same command is run again. At the end
tables and rows are compared with those of the study that nobody disturbs. Hardware: two CPU cores.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks._frame import benchmark
from benchmarks._preempted_study import STUDY, UPDATES

_TABLES = ("table.csv", "table.md", "table.tex")
_LONGEST_S = 3600.0
"""Longest time of one start of the study; a limit for a study that hangs."""


@benchmark(times=None, device=None)
@click.option("--number", default=50, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--num-steps", default=400, show_default=True, help="Updates of each training.")
def preemptions(number: int, seed: int, num_steps: int) -> dict[str, Any]:
    """Preempt a study, and count."""
    rng = random.Random(seed)  # noqa: S311 - moments, not secrets
    with tempfile.TemporaryDirectory() as folder:
        quiet = _Storage(Path(folder, "quiet"), num_steps)
        if status := quiet.start("quiet").wait(_LONGEST_S):
            raise click.ClickException(f"The undisturbed study ended with status {status}.")
        disturbed = _Storage(Path(folder, "disturbed"), num_steps)
        total = 4 * num_steps
        # Moments count updates, so that all of them lie before the end.
        moments = sorted(rng.sample(range(total * 95 // 100), number))
        preempted = []
        for session, moment in enumerate(moments):
            process = disturbed.start(str(session))
            if not disturbed.wait_for(process, moment, beyond=str(session)):
                break
            time.sleep(rng.uniform(0.0, 0.2))
            preempted.append({"moment": moment, **_preempt(process)})
        status = disturbed.start("last").wait(_LONGEST_S)
        again = _computed_again(disturbed.updates(), [str(n) for n in range(len(preempted))])
        return {
            "preemptions": len(preempted),
            "seed": seed,
            "trainings_at_once": 2,
            "updates": total,
            "updates_again": again,
            "updates_again_median": statistics.median(again),
            "updates_again_worst": max(again),
            "seconds_to_the_end_median": statistics.median(each["seconds"] for each in preempted),
            "seconds_to_the_end_worst": max(each["seconds"] for each in preempted),
            "statuses": sorted({each["status"] for each in preempted}),
            "last_status": status,
            "same_tables": disturbed.tables() == quiet.tables(),
            "same_rows": disturbed.rows() == quiet.rows(),
        }


class _Storage:
    """The study in a storage of its own."""

    def __init__(self, folder: Path, num_steps: int) -> None:
        self._folder, self._num_steps = folder, num_steps
        self._updates = folder / "updates"
        folder.mkdir()
        self._updates.touch()

    def start(self, session: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks._preempted_study", "--storage"]
        settings = ["--set", f"num_steps={self._num_steps}"]
        environment = {**os.environ, UPDATES: str(self._updates), "TOCO_SESSION": session}
        with (self._folder / f"{session}.log").open("w") as log:
            return subprocess.Popen(  # noqa: S603 - this interpreter, this module
                [*command, str(self._folder / "results"), *settings],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def updates(self) -> list[tuple[str, str, int]]:
        """Return session, training and step of all updates, in the order of their computation."""
        lines = map(str.split, self._updates.read_text().splitlines())
        return [(session, training, int(step)) for session, training, step in lines]

    def wait_for(self, process: subprocess.Popen[bytes], moment: int, *, beyond: str) -> bool:
        """Wait for ``moment`` updates and one of the session; return whether the study runs."""
        deadline = time.monotonic() + _LONGEST_S
        while process.poll() is None and time.monotonic() < deadline:
            updates = self.updates()
            if len(updates) >= moment and any(session == beyond for session, _, _ in updates[-9:]):
                return True
            time.sleep(0.02)
        return False

    def tables(self) -> dict[str, bytes]:
        (folder,) = self._folder.glob(f"results/{STUDY.name}-*/")
        return {name: (folder / name).read_bytes() for name in _TABLES}

    def rows(self) -> dict[str, list[Any]]:
        """Return all rows of all run folders, without times."""
        return {
            path.parent.name: [
                (row["step"], row["kind"], _without_times(row["values"]))
                for row in map(json.loads, path.read_text().splitlines())
            ]
            for path in self._folder.glob("results/runs/*/metrics.jsonl")
        }


def _without_times(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if "time" not in name}


def _preempt(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Signal all processes of the job; return its exit status and the seconds to its end."""
    began = time.monotonic()
    job = psutil.Process(process.pid)
    for member in (job, *job.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGTERM)
    status = process.wait(_LONGEST_S)
    return {"status": status, "seconds": round(time.monotonic() - began, 2)}


def _computed_again(updates: list[tuple[str, str, int]], sessions: list[str]) -> list[int]:
    """Count the updates that sessions lost: later sessions compute them once more."""
    done: dict[str, int] = defaultdict(int)
    last_session: dict[str, str] = {}
    again = dict.fromkeys(sessions, 0)
    for session, training, step in updates:
        if step <= done[training]:
            again[last_session[training]] += 1
        else:
            done[training], last_session[training] = step, session
    return [again[session] for session in sessions]
