"""A search of fake trainings on a real, local Ray, whose driver is killed twice."""

import dataclasses
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from sweeps.core.plan.launch_options import Launch
from sweeps.core.run.start import run_study
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.search_record import read_search_record

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
import ray_drivers
from fake_backend import InProcess
from fake_search import STUDY
from fake_training import chain, metrics_of

pytestmark = pytest.mark.slow
FOLDER = STUDY.resolve().folder_name


class Driver:
    """Runs the search as a user would, in a process of its own, with a token of its own."""

    def __init__(self, root):
        self.storage, self.orders, self.log = root / "results", root / "orders", root / "log"
        self.orders.mkdir()
        self.orphans = []

    def start(self):
        environment = ray_drivers.environment(
            FAKE_ORDERS=self.orders, RAY_AUTH_TOKEN_PATH=self.orders / "token"
        )
        command = [sys.executable, Path(__file__).parents[1] / "fake_search.py", self.storage]
        with self.log.open("w") as log:
            return subprocess.Popen(
                [str(part) for part in command], env=environment, stdout=log, stderr=log
            )

    def finish(self):
        process = self.start()
        try:
            return process.wait(400), self.log.read_text()
        finally:
            process.kill()

    def kill_when(self, condition):
        process = self.start()
        deadline = time.monotonic() + 400
        try:
            while not condition():
                assert process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)
            self.orphans += psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def steps(self):
        """Of all published checkpoints."""
        found = self.storage.glob("runs/*/checkpoints/step_*")
        return [int(path.name.removeprefix("step_")) for path in found]

    def starts(self):
        """(block, step) that every attempt began at."""
        lines = (self.orders / "starts").read_text().splitlines()
        return [(int(block), int(step)) for _, block, step, _ in map(str.split, lines)]

    def trials(self):
        return read_search_record(self.storage / FOLDER).trials


@pytest.fixture
def driver(tmp_path):
    driver = Driver(tmp_path)
    yield driver
    # Ray's agents outlive a killed driver by a minute or two; these are ours.
    for process in driver.orphans:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_search_whose_driver_is_killed(driver, monkeypatch, capsys):
    # Twice: before the rung, and behind it; both running trainings are held there.
    (driver.orders / "wait-6").touch()
    driver.kill_when(lambda: driver.steps().count(5) == 2)
    proposed = [trial.values for trial in driver.trials()]
    (driver.orders / "wait-6").rename(driver.orders / "wait-16")
    driver.kill_when(lambda: driver.steps().count(15) == 2)
    (driver.orders / "wait-16").unlink()
    status, log = driver.finish()
    assert status == 0, log
    assert "Traceback" not in log
    trials = driver.trials()
    assert [trial.values for trial in trials][: len(proposed)] == proposed
    assert len(trials) == STUDY.num_trials
    assert {trial.state for trial in trials} <= {"finished", "stopped"}
    # No training began anew: one start at step 0 for each, the others from a checkpoint.
    beginnings = [block for block, step in driver.starts() if step == 0]
    assert sorted(beginnings) == sorted(trial.values["method.aux_block"] for trial in trials)
    assert sorted(step for _, step in driver.starts() if step) == [5, 5, 15, 15]
    ledger = Ledger(driver.storage)
    for trial in trials:
        block, entry = trial.values["method.aux_block"], ledger.entry(trial.key)
        if trial.state == "finished":
            assert entry.metrics == metrics_of(chain(STUDY.seed, block, 20))
            assert entry.origin.search is True
        else:
            assert trial.stopped_at == 10
            assert entry is None
    assert [path.name for path in (driver.storage / "tune").iterdir()] == []
    check_tracked(driver, trials)
    # Nothing is left to do; more trials go on with the same search. No Ray is needed to show it.
    monkeypatch.setenv("FAKE_ORDERS", str(driver.orders))
    number = len(driver.starts())
    launch = Launch(driver.storage)
    assert run_study(STUDY, launch, connect=None) == 0
    assert "All 6 trials have ended." in capsys.readouterr().out
    assert len(driver.starts()) == number
    assert run_study(dataclasses.replace(STUDY, num_trials=8), launch, InProcess().connect) == 0
    more = driver.trials()
    assert len(more) == 8
    assert [trial.values for trial in more[:6]] == [trial.values for trial in trials]


def check_tracked(driver, trials):
    client = MlflowClient(f"sqlite:///{driver.storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(STUDY.name).experiment_id
    runs = client.search_runs([experiment], max_results=100)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.status == "FINISHED"
    assert "belong in no ablation table" in parent.data.tags["mlflow.note.content"]
    children = {run.data.tags["key"]: run for run in runs if run is not parent}
    assert len(children) == len(runs) - 1
    assert children.keys() == {trial.key for trial in trials}
    for trial in trials:
        run = children[trial.key]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == {"finished": "FINISHED", "stopped": "KILLED"}[trial.state]
