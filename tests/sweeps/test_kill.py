"""A study whose workers, drivers and Ray heads are killed at random moments ends with the same
table.

``TOCO_KILLS`` says how often (3), ``TOCO_KILL_SEED`` at which moments.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import ray_drivers
from twin_study import KILLS, STUDY, run_without_ray

from sweeps.core.plan.survey import survey

pytestmark = pytest.mark.slow
PLAN = STUDY.resolve()
SEED = int(os.environ.get("TOCO_KILL_SEED", "0"))
VICTIMS = ("worker", "driver", "head")
TABLES = ("table.csv", "table.md", "table.tex")


class Twin:
    """The study in a storage of its own, run as a user would."""

    def __init__(self, root):
        self.storage, self.token, self.log = root / "results", root / "token", root / "log"
        self.folder = self.storage / PLAN.folder_name
        self.orphans = {}

    def start(self):
        environment = ray_drivers.environment(RAY_AUTH_TOKEN_PATH=self.token)
        command = [
            sys.executable,
            str(Path(__file__).with_name("twin_study.py")),
            "--storage",
            str(self.storage),
        ]
        with self.log.open("w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def entries(self):
        """The ledger, byte by byte."""
        paths = self.storage.glob("ledger/??/*.json")
        return {path.stem: path.read_bytes() for path in paths}

    def mean_s(self):
        """Seconds of a training, on average over those that have ended."""
        times_s = [json.loads(entry)["wall_time_s"] for entry in self.entries().values()]
        return sum(times_s) / max(len(times_s), 1)

    def results(self):
        """When the result of every finished run was written."""
        return {
            path.parent.name: path.stat().st_mtime_ns
            for path in self.storage.glob("runs/*/result.json")
        }

    def rows(self):
        """Every row of every run, without durations."""
        return {
            path.parent.name: [
                _without_times(json.loads(line)) for line in path.read_text().splitlines()
            ]
            for path in self.storage.glob("runs/*/metrics.jsonl")
        }

    def tables(self):
        return {name: (self.folder / name).read_bytes() for name in TABLES}

    def children(self, process):
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                self.orphans[child.pid] = child

    def end_orphans(self):
        """Ray's agents outlive a killed driver by a minute or two; these are ours."""
        for process in self.orphans.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.orphans = {}


def _without_times(row):
    return (
        row["step"],
        row["kind"],
        {name: value for name, value in row["values"].items() if "time" not in name},
    )


def workers(process):
    """The processes that train for this driver, found by the folders they train in."""
    found = []
    for scratch in Path(tempfile.gettempdir()).glob("toco-*-*-*"):
        with suppress(psutil.NoSuchProcess, ValueError):
            worker = psutil.Process(int(scratch.name.split("-")[2]))
            if process.pid in [parent.pid for parent in worker.parents()]:
                found.append(worker)
    return found


def wait_for_training(process, twin, finished):
    """Wait until ``finished`` trials are in the ledger and another one
    trains, or the driver ends.
    """
    deadline = time.monotonic() + 600
    while process.poll() is None and (len(twin.entries()) < finished or not workers(process)):
        assert time.monotonic() < deadline, twin.log.read_text()
        time.sleep(0.05)


def kill(victim, process, twin):
    """Kill while a training runs; return whether one did."""
    twin.children(process)
    training = workers(process)
    if not training:
        return False
    if victim == "worker":
        training[0].kill()
    elif victim == "driver":
        process.send_signal(signal.SIGKILL)
    else:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if child.name() in ("gcs_server", "raylet"):
                    child.kill()
    return True


@pytest.mark.timeout(1800)
def test_a_study_that_is_killed_again_and_again_ends_with_the_same_table(tmp_path):
    (tmp_path / "quiet").mkdir()
    (tmp_path / "killed").mkdir()
    quiet, killed = Twin(tmp_path / "quiet"), Twin(tmp_path / "killed")
    # What the killed study has to reproduce, made without Ray: there is nothing to kill.
    assert ray_drivers.in_a_trials_place(run_without_ray, quiet.storage) == 0
    num_trials = len(quiet.entries())
    situation = survey(STUDY, quiet.storage)
    assert set(quiet.entries()) == set(situation.trials())
    # The first look decides too little, so that there are kills during the second one, too.
    assert situation.looks().num_done == 2
    assert num_trials == 8 or (KILLS > 3 and 22 < num_trials <= 32)

    rng = random.Random(SEED)  # noqa: S311 - moments, not secrets
    # Moments count finished trials, not seconds: a study that runs faster than the quiet one is
    # killed as often. Three trials are left after the last kill, more than the two workers finish
    # in the random part of a moment. The moments are spread over the study, so that a kill meets
    # each look.
    places = num_trials - 3
    bounds = [number * places // KILLS for number in range(KILLS + 1)]
    moments = [rng.randrange(low, max(high, low + 1)) for low, high in pairwise(bounds)]
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(KILLS)]
    rng.shuffle(victims)
    done = []
    try:
        while True:
            before, results = killed.entries(), killed.results()
            process = killed.start()
            while victims:
                wait_for_training(process, killed, moments[len(done)])
                # Trainings take longer beside others than alone.
                time.sleep(rng.uniform(0.0, killed.mean_s() or quiet.mean_s()))
                if process.poll() is not None:
                    break
                if not kill(victims[-1], process, killed):
                    continue  # between two trainings: the next one is waited for
                done.append(victims.pop())
                if done[-1] != "worker":
                    break
            status = process.wait(600)
            killed.end_orphans()
            log = killed.log.read_text()
            # What was finished is counted as there, and neither its entry nor its run was touched.
            # A driver that was killed at the end leaves nothing to do.
            there = re.search(r"(\d+) of them ended|All (\d+) trials have ended", log)
            assert there, log
            assert int(there[1] or there[2]) >= len(before)
            assert {
                key: entry for key, entry in killed.entries().items() if key in before
            } == before
            assert {key: when for key, when in killed.results().items() if key in before} == {
                key: results[key] for key in before
            }
            if status == 0:
                break
            assert done[-1] != "worker" or status != 4, log
    finally:
        killed.end_orphans()
        process.kill()
    assert len(done) == KILLS, f"only {done} could be killed before the end"
    assert set(killed.entries()) == set(quiet.entries())
    assert killed.rows() == quiet.rows()
    assert killed.tables() == quiet.tables()
