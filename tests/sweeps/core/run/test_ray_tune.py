"""Studies of fake trainings on a real, local Ray: workers and drivers are killed, and not a row is
lost or doubled.
"""

import csv
import json
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from mlflow import MlflowClient

from sweeps.core.plan import ray_environment
from sweeps.core.plan.launch_options import Launch
from sweeps.core.run.failures import Failure
from sweeps.core.run.start import run_study
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.runs import Runs
from toco.room import NoRoomError
from toco.train.run_folder import RunFolder

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
import ray_drivers
from fake_backend import InProcess
from fake_study import STUDY
from fake_training import chain, metrics_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PLAN = STUDY.resolve()
NAMES = [trial.name for trial in PLAN.trials]
ROOT = Path(__file__).parents[4]


class Driver:
    """Runs the study as a user would, in processes of its own, with a token of its own."""

    def __init__(self, root):
        self.storage, self.orders = root / "results", root / "orders"
        self.orders.mkdir()
        self.token = root / "token"
        self.command = [Path(__file__).parents[1] / "fake_study.py", "--storage", self.storage]
        self.folder = self.storage / PLAN.folder_name
        self.log = root / "log"
        self.orphans = []

    def start(self, *arguments):
        environment = ray_drivers.environment(
            FAKE_ORDERS=self.orders,
            RAY_AUTH_TOKEN_PATH=self.token,
            XDG_CACHE_HOME=self.orders / "cache",
        )
        command = [sys.executable, *map(str, self.command), *arguments]
        with self.log.open("w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def finish(self, *arguments):
        process = self.start(*arguments)
        try:
            return process.wait(400), self.log.read_text()
        finally:
            process.kill()

    def finish_here(self, monkeypatch, capsys):
        """What ``finish`` does, in this process and without Ray."""
        monkeypatch.setenv("FAKE_ORDERS", str(self.orders))
        status = run_study(STUDY, Launch(self.storage), InProcess().connect)
        output = capsys.readouterr()
        return status, output.out + output.err

    def kill_when_published(self, step, *arguments):
        """Kill the driver when the first two trainings, which wait there, have published their rows
        up to ``step``.
        """
        process = self.start(*arguments)
        try:
            wait_for(
                lambda: all(self.steps(trial)[-1:] == [step] for trial in PLAN.trials[:2]), process
            )
            children = psutil.Process(process.pid).children(recursive=True)
            listening = listening_addresses(children)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.orphans += children
        return listening

    def move(self, storage):
        self.storage = storage
        self.command[2] = storage
        self.folder = storage / PLAN.folder_name

    def end_orphans(self):
        """Ray's agents outlive a killed driver by a minute or two; these are ours."""
        for process in self.orphans:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def run_dir(self, trial):
        """The run folder of a trial, by its place in the plan; where there is no study yet, one
        that is not there.
        """
        file = self.folder / "study.json"
        keys = (
            [key for cell in json.loads(file.read_text())["cells"] for key in cell["keys"]]
            if file.exists()
            else []
        )
        return self.storage / "runs" / (keys[PLAN.trials.index(trial)] if keys else "none")

    def steps(self, trial):
        path = self.run_dir(trial) / "metrics.jsonl"
        return (
            [json.loads(line)["step"] for line in path.read_text().splitlines()]
            if path.exists()
            else []
        )

    def starts(self):
        """Step that every attempt began at, by (seed, block)."""
        starts = {}
        for line in (self.orders / "starts").read_text().splitlines():
            seed, block, step, _ = map(int, line.split())
            starts.setdefault((seed, block), []).append(step)
        return starts

    def computed(self):
        """Every step that was computed, by (seed, block), in order."""
        steps = {}
        for line in (self.orders / "steps").read_text().splitlines():
            seed, block, step = map(int, line.split())
            steps.setdefault((seed, block), []).append(step)
        return steps


@pytest.fixture
def driver(tmp_path):
    driver = Driver(tmp_path)
    yield driver
    driver.end_orphans()


def listening_addresses(processes):
    addresses = set()
    for process in processes:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:
            continue
        addresses |= {
            item.laddr.ip.removeprefix("::ffff:") for item in connections if item.status == "LISTEN"
        }
    return addresses


def wait_for(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the driver ended early"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def check_rows(driver, trials=PLAN.trials):
    for trial in trials:
        run_dir = driver.run_dir(trial)
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        assert [(row["step"], row["kind"]) for row in rows] == [
            (step, "val") for step in (5, 10, 15, 20)
        ]
        for row in rows:
            # The state of an uninterrupted training: a step done twice or left out would change the
            # whole chain.
            assert row["values"] == metrics_of(
                chain(trial.seed, trial.config.method.aux_block, row["step"])
            )
        result = json.loads((run_dir / "result.json").read_text())
        assert (result["status"], result["step"]) == ("finished", 20)
        assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000020"]


def check_tracked(driver, status, trials=PLAN.trials):
    client = MlflowClient(f"sqlite:///{driver.storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fake").experiment_id
    runs = client.search_runs([experiment], max_results=100)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.status == status
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert len(children) == len(runs) - 1 == len(PLAN.trials)
    for trial in trials:
        run = children[trial.name]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "val/cam_miou")
        assert sorted(metric.step for metric in history) == [5, 10, 15, 20]


def test_no_step_is_computed_twice_after_the_signal_of_a_scheduler(driver):
    """A scheduler may signal every process of a job: the driver's Ray and its workers, too."""
    process = None
    try:
        # Between two evaluations, which come every five steps.
        (driver.orders / "wait-7").touch()
        process = driver.start()
        wait_for(
            lambda: (
                (driver.orders / "steps").exists()
                and [steps[-1] for steps in driver.computed().values()] == [6, 6]
            ),
            process,
        )
        children = psutil.Process(process.pid).children(recursive=True)
        for each in (psutil.Process(process.pid), *children):
            each.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130, driver.log.read_text()
        log = driver.log.read_text()
        assert "Stopping: 2 trainings write a checkpoint after the present step." in log
        assert log.endswith("Stopped. The same command goes on from here.\n")
        check_no_process_is_left(driver, children, 20)
        # No lease is left, and nobody waits for one.
        assert not [*(driver.storage / "leases").glob("*.json")]
    finally:
        if process is not None:
            process.kill()
        (driver.orders / "wait-7").unlink()
    status, log = driver.finish()
    assert status == 0, log
    assert {starts[1] for starts in driver.starts().values() if len(starts) > 1} == {7}
    assert all(steps == [*range(20)] for steps in driver.computed().values())
    check_rows(driver)


def test_a_killed_worker_a_diverging_training_and_bad_data(driver, monkeypatch, capsys):
    (driver.orders / "kill-0-7-12").touch()
    (driver.orders / "refuse-0-9").touch()
    (driver.orders / "diverge-1-9").touch()
    status, log = driver.finish()
    # Not every training finished, and the command says which.
    assert status == 4, log
    assert f"{NAMES[0]} is started again: its worker process is gone" in log
    assert f"{NAMES[2]} failed: ValueError: image7.png cannot be decoded." in log
    assert "2/4 trials done, 0 running, 2 failed, 0 waiting" in log
    assert "Traceback" not in log
    check_rows(driver, PLAN.trials[:2])
    check_tracked(driver, "FAILED", PLAN.trials[:2])
    # Killed before step 12, it went on from its last evaluation; what would go wrong again was not
    # tried again.
    assert driver.starts() == {(0, 7): [0, 10], (1, 7): [0], (0, 9): [0], (1, 9): [0]}
    # What went wrong is part of the record: the trace of the failure, the retry of the killed one,
    # how one diverged.
    ledger = Ledger(driver.storage)
    keys = [driver.run_dir(trial).name for trial in PLAN.trials]
    assert [ledger.entry(key) and ledger.entry(key).status for key in keys] == [
        "finished",
        "finished",
        None,
        "diverged",
    ]
    assert [len(ledger.failures(key)) for key in keys] == [1, 0, 1, 0]
    assert "image7.png cannot be decoded" in ledger.failures(keys[2])[0].traceback
    assert ledger.entry(keys[0]).attempts == 1
    with (driver.folder / "table.csv").open() as table:
        assert len(list(csv.DictReader(table))) >= 2
    page = (driver.folder / "report.html").read_text()
    assert "image7.png cannot be decoded" in page
    assert stat.S_IMODE(driver.token.stat().st_mode) == 0o600
    # When the data is right, the same study goes on; what diverged stays a result.
    (driver.orders / "refuse-0-9").unlink()
    status, log = driver.finish_here(monkeypatch, capsys)
    assert status == 4
    assert "4/4 trials done, 0 running, 0 failed, 0 waiting" in log
    assert driver.starts()[0, 9] == [0, 10]
    assert len(driver.starts()[1, 9]) == 1
    check_rows(driver, PLAN.trials[:3])


def test_killed_drivers(driver):
    (driver.orders / "wait-11").touch()
    listening = driver.kill_when_published(10)
    assert listening == {"127.0.0.1"}
    (driver.orders / "wait-11").rename(driver.orders / "wait-16")
    # The second one begins without Ray's state, and with the study in another place.
    shutil.rmtree(driver.storage / "tune")
    moved = driver.storage.rename(driver.storage.with_name("moved"))
    driver.move(moved)
    driver.kill_when_published(15)
    assert driver.starts() == {(0, 7): [0, 10], (1, 7): [0, 10]}
    (driver.orders / "wait-16").unlink()
    status, log = driver.finish()
    assert status == 0, log
    assert "2 go on from a checkpoint" in log
    assert driver.starts() == {(0, 7): [0, 10, 15], (1, 7): [0, 10, 15], (0, 9): [0], (1, 9): [0]}
    check_rows(driver)
    check_tracked(driver, "FINISHED")
    # What Tune keeps is a cache of one driver, and goes with the last.
    assert list((driver.storage / "tune").iterdir()) == []
    # Nothing is left to do: no Ray, the same table.
    table = (driver.folder / "table.csv").read_text()
    status, log = driver.finish()
    assert status == 0, log
    assert log.endswith("All of its trials have ended; nothing was run.\n")
    assert len(driver.starts()[0, 7]) == 3
    assert (driver.folder / "table.csv").read_text() == table
    check_tracked(driver, "FINISHED")


def test_two_drivers_of_one_study(driver):
    """The second one helps the first, takes over what that left when it was killed, and trains
    nothing twice.
    """
    (driver.orders / "wait-11").touch()
    first = driver.start()
    try:
        wait_for(lambda: all(driver.steps(trial)[-1:] == [10] for trial in PLAN.trials[:2]), first)
        second = driver.start()
        try:
            wait_for(lambda: all(driver.steps(trial)[-1:] == [10] for trial in PLAN.trials), second)
            driver.orphans += psutil.Process(first.pid).children(recursive=True)
            first.kill()
            first.wait()
            (driver.orders / "wait-11").unlink()
            assert second.wait(400) == 0, driver.log.read_text()
        finally:
            second.kill()
    finally:
        first.kill()
    assert driver.starts() == {(0, 7): [0, 10], (1, 7): [0, 10], (0, 9): [0], (1, 9): [0]}
    check_rows(driver)


def check_no_process_is_left(driver, children, seconds):
    driver.orphans += children
    deadline = time.monotonic() + seconds
    while any(map(is_alive, children)):
        assert time.monotonic() < deadline, [child for child in children if is_alive(child)]
        time.sleep(0.1)


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "a worker is waited for"), (signal.SIGTERM, "trials run")],
    ids=str,
)
def test_a_signal_ends_a_study_with_a_sentence_and_leaves_no_process(driver, number, moment):
    (driver.orders / "wait-0").touch()
    process = driver.start()
    try:
        if moment == "trials run":
            wait_for((driver.orders / "starts").exists, process)
        else:
            wait_for(lambda: "4 waiting" in driver.log.read_text(), process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.wait(200) == 130, driver.log.read_text()
    finally:
        process.kill()
    log = driver.log.read_text()
    assert log.endswith("Stopped. The same command goes on from here.\n")
    assert "Traceback" not in log
    check_no_process_is_left(driver, children, 60)


def test_a_lost_head_is_a_sentence_and_leaves_no_process(driver, monkeypatch, capsys):
    (driver.orders / "wait-11").touch()
    process = driver.start()
    try:
        wait_for(
            lambda: all(driver.steps(trial)[-1:] == [10] for trial in PLAN.trials[:2]), process
        )
        children = psutil.Process(process.pid).children(recursive=True)
        (head,) = (child for child in children if child.name() == "gcs_server")
        head.kill()
        assert process.wait(200) == 1, driver.log.read_text()
    finally:
        process.kill()
    log = driver.log.read_text()
    assert log.splitlines()[-1].endswith("is lost. The same command goes on from here.")
    assert "Traceback" not in log
    check_no_process_is_left(driver, children, 120)
    # What it left is in order. That a next Ray goes on from there is in test_killed_drivers.
    (driver.orders / "wait-11").unlink()
    status, log = driver.finish_here(monkeypatch, capsys)
    assert status == 0, log
    assert driver.starts() == {(0, 7): [0, 10], (1, 7): [0, 10], (0, 9): [0], (1, 9): [0]}
    check_rows(driver)


SMALL = {
    "data.num_train": 32,
    "data.num_val": 8,
    "num_steps": 20,
    "evaluate_every": 5,
    "log_every": 2,
}
SMALL |= {
    "optim.warmup_steps": 0,
    "method.ptc.start_step": 2,
    "method.ctc.start_step": 2,
    "method.segmentation.start_step": 4,
    "method.energy.start_step": 4,
    "evaluate.num_pictures": 1,
}


def test_a_real_training_whose_worker_is_killed_is_the_uninterrupted_one(driver, tmp_path):
    driver.command = [
        ROOT / "sweeps" / "layer_ablation.py",
        "--storage",
        driver.storage,
        "--layers",
        9,
        "--seeds",
        0,
    ]
    driver.command += [
        part for path, value in SMALL.items() for part in ("--set", f"{path}={value}")
    ]
    process = driver.start()
    try:
        wait_for(lambda: list(driver.storage.glob("runs/*/checkpoints/step_*")), process)
        # A worker's scratch folder says which process it is.
        (run_dir,) = (
            path.parents[1] for path in list(driver.storage.glob("runs/*/checkpoints/step_*"))[:1]
        )
        (scratch,) = Path(tempfile.gettempdir()).glob(f"toco-{run_dir.name}-*")
        worker = psutil.Process(
            int(scratch.name.removeprefix(f"toco-{run_dir.name}-").partition("-")[0])
        )
        assert process.pid in [parent.pid for parent in worker.parents()]
        worker.kill()
        assert process.wait(700) == 0, driver.log.read_text()
    finally:
        process.kill()
    assert driver.log.read_text().count("is started again: its worker process is gone") == 1
    run, expected = RunFolder(run_dir), RunFolder(tmp_path / "uninterrupted")
    ray_drivers.in_a_trials_place(ray_drivers.train_uninterrupted, run.config(), expected.path)
    assert [row["step"] for row in run.metrics() if row["kind"] == "val"] == [5, 10, 15, 20]
    assert [without_times(row) for row in run.metrics()] == [
        without_times(row) for row in expected.metrics()
    ]
    assert run.result()["metrics"] == expected.result()["metrics"]


def without_times(row):
    return (
        row["step"],
        row["kind"],
        {name: value for name, value in row["values"].items() if "time" not in name},
    )


def test_the_reason_of_a_lost_worker_is_text(tmp_path):
    ray_environment.prepare("local")
    from sweeps.core.run import ray_tune as runner

    file = tmp_path / "error.txt"
    first = "Failure # 1 (occurred at 2026-11-29_17-12-16)\nDisk error\n"
    for text, reason in (
        ("", "its worker process is gone"),
        (first, "Disk error"),
        (
            first + "Failure # 2 (occurred at x)\nThe actor died unexpectedly.\n\tip: 1.2.3.4\n",
            "its worker process is gone",
        ),
    ):
        file.write_text(text)
        failure = runner._lost(SimpleNamespace(error_file=str(file)), "w1", "node")
        assert (failure.kind, failure.reason, failure.host, failure.trace) == (
            "lost",
            reason,
            "w1",
            text,
        )
    failure = runner._lost(SimpleNamespace(error_file=str(tmp_path / "none")), "", "")
    assert "cannot be read" in failure.reason


class Told:
    """A listener that keeps what it is told."""

    def __init__(self):
        self.told = []

    def check(self):
        """All is well."""

    def __getattr__(self, name):
        return lambda *about: self.told.append((name, *about))


class HeadsMessages:
    """What a driver asks of its workers, and their signs of life."""

    def __init__(self):
        self.asked, self.lives = [], {}

    def ask_to_stop(self, nodes, *, everywhere):
        self.asked.append((sorted(nodes), everywhere))

    def life(self, node):
        return self.lives.get(node)


def fake_trial(key):
    fields = {"trial_id": f"id {key}", "error_file": None, "local_path": None, "path": None}
    return SimpleNamespace(config={"trial": {"key": key}}, **fields)


def tried(experiment, trial, node, failure=None):
    """An attempt on a node that fails."""
    key = trial.config["trial"]["key"]
    experiment.reported(key, {"status": "started", "host": f"host {node}", "node": node})
    if failure is not None:
        experiment.reported(key, {"status": "failed", "failure": asdict(failure)})
    experiment.failed_now(trial)


def test_trials_that_fail_by_a_machines_fault_start_elsewhere(tmp_path, monkeypatch):
    ray_environment.prepare("local")
    from sweeps.core.run import ray_tune as runner

    nodes = [{"NodeID": node, "Alive": True, "Resources": {"CPU": 1.0}} for node in ("aa", "bb")]
    monkeypatch.setattr(runner.ray, "nodes", lambda: nodes)
    told = Told()
    launch = Launch(tmp_path, max_failures=0)
    experiment = runner._Experiment(
        None, told, Runs(Ledger(tmp_path)), launch, tmp_path / "left_out", HeadsMessages()
    )
    one, two, three = map(fake_trial, ("1", "2", "3"))

    def selector(key):
        return experiment.request(key)._bound.arguments["bundle_label_selector"]

    assert selector("1") is None
    full = Failure("room", "/scratch has no room", "trace", "host aa", "aa")
    tried(experiment, one, "aa", full)
    assert selector("1") == [{"ray.io/node-id": "!in(aa)"}]
    assert selector("2") is None
    tried(experiment, two, "aa")
    # Also for trials that have not failed, and those that wait for a worker there already find a
    # mark.
    assert selector("3") == [{"ray.io/node-id": "!in(aa)"}]
    assert [path.name for path in (tmp_path / "left_out").iterdir()] == ["aa"]
    away = nodes.pop()
    monkeypatch.setattr(runner, "_NODES_EVERY_S", -1.0)
    tried(
        experiment,
        three,
        "aa",
        Failure("left out", "host aa gets no more trials.", "", "host aa", "aa"),
    )
    assert not list((tmp_path / "left_out").iterdir()), (
        "no other node is left, and it would refuse trials for ever"
    )
    nodes.append(away)
    tried(
        experiment,
        three,
        "aa",
        Failure("left out", "host aa gets no more trials.", "", "host aa", "aa"),
    )
    assert [path.name for path in (tmp_path / "left_out").iterdir()] == ["aa"]
    gone = Failure("lost", "its worker process is gone", "", "host aa", "aa")
    assert told.told[:2] == [("lost", "1", full), ("lost", "2", gone)]
    assert told.told[2][0] == "say"
    assert told.told[2][1] == (
        "host aa gets no more trials: 2 failed there by the machine's fault, at last: its worker "
        "process is gone"
    )
    tried(experiment, three, "bb", Failure("trial", "KeyError: 'x'", "trace", "host bb", "bb"))
    assert told.told[3][:2] == ("failed", "3")
    assert experiment.failed == {"id 3"}
    experiment.check()
    tried(experiment, one, "bb", Failure("room", "/scratch has no room", "trace", "host bb", "bb"))
    assert len(told.told) == 4
    with pytest.raises(NoRoomError, match=r"/scratch has no room \(on host bb\)"):
        experiment.check()


@pytest.fixture
def watched_experiment(tmp_path, monkeypatch):
    """Trials 1 and 2 run on the nodes aa and bb; time passes as a test says."""
    ray_environment.prepare("local")
    from sweeps.core.run import ray_tune as runner

    nodes = [{"NodeID": node, "Alive": True, "Resources": {"CPU": 1.0}} for node in ("aa", "bb")]
    state = SimpleNamespace(now_s=0.0, draining=frozenset(), signal=False, told=Told())
    monkeypatch.setattr(runner.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: state.now_s))
    monkeypatch.setattr(runner, "draining_nodes", lambda: state.draining)
    monkeypatch.setattr(runner.interrupts, "was_received", lambda: state.signal)
    state.messages = HeadsMessages()
    runs = Runs(Ledger(tmp_path))
    launch = Launch(tmp_path)
    state.experiment = runner._Experiment(
        None, state.told, runs, launch, tmp_path / "left_out", state.messages
    )
    for key, node in (("1", "aa"), ("2", "bb")):
        started = {"status": "started", "host": f"host {node}", "node": node}
        state.experiment.reported(key, started)
    return state


STOPPED = Failure("stopped", "StoppedError: Stopped after step 7, as requested.", "", "h", "n")


def test_trials_of_a_node_that_is_about_to_end_move(watched_experiment):
    state, experiment = watched_experiment, watched_experiment.experiment
    experiment.running({"1", "2"})
    assert state.messages.asked[-1] == ([], False)
    state.now_s, state.draining = 3.0, frozenset({"aa"})
    experiment.running({"1", "2"})
    assert state.messages.asked[-1] == (["aa"], False)
    one = fake_trial("1")
    tried(experiment, one, "aa", STOPPED)
    assert state.told.told[-1] == ("moved", "1", "host aa")
    # It is no failure, and starts again on another node.
    assert not experiment.failed
    selector = experiment.request("1")._bound.arguments["bundle_label_selector"]
    assert selector == [{"ray.io/node-id": "!in(aa)"}]


def test_a_driver_that_is_asked_to_stop_waits_for_its_trials_and_starts_none(watched_experiment):
    state, experiment = watched_experiment, watched_experiment.experiment
    experiment.running({"1", "2"})
    state.signal = True
    assert experiment.suggest() is None
    experiment.running({"1", "2"})
    assert ("stopping", 2) in state.told.told
    assert state.messages.asked[-1] == ([], True)
    tried(experiment, fake_trial("1"), "aa", STOPPED)
    assert experiment.failed == {"id 1"}  # it may not start again here
    assert not [each for each in state.told.told if each[0] in ("lost", "failed", "moved")]
    experiment.running({"2"})
    with pytest.raises(KeyboardInterrupt):
        experiment.running(set())
    with pytest.raises(KeyboardInterrupt):
        experiment.suggest()


def test_a_driver_does_not_wait_for_ever_for_a_trial_that_hangs(watched_experiment):
    state, experiment = watched_experiment, watched_experiment.experiment
    state.signal = True
    experiment.running({"1"})
    state.now_s = 119.0
    experiment.running({"1"})
    state.now_s = 121.0
    with pytest.raises(KeyboardInterrupt):
        experiment.running({"1"})


def test_a_silent_machine_is_named_once_and_so_is_its_answer(watched_experiment):
    state, experiment = watched_experiment, watched_experiment.experiment

    def pass_time(seconds, *alive):
        for _ in range(int(seconds / 2.5)):
            state.now_s += 2.5
            state.messages.lives |= dict.fromkeys(alive, state.now_s)
            experiment.running({"1", "2"})
        said = [text for name, text in (each[:2] for each in state.told.told) if name == "say"]
        state.told.told.clear()
        return said

    assert pass_time(10, "aa", "bb") == []
    assert pass_time(30, "bb") == [
        "There is no word from host aa for 12 s. If it is lost, its trainings continue on other "
        "nodes."
    ]
    assert pass_time(10, "aa", "bb") == ["host aa answers again."]


@pytest.fixture
def obeyed_interrupt():
    """The signal of Ctrl-C as Python handles it: processes of pytest-xdist ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_head_answers_while_it_takes_connections_and_has_the_nodes_that_it_needs():
    ray_environment.prepare("local")
    from sweeps.core.run.ray_cluster import HeadWatch

    # The machine answers, and no head listens: no patience is needed.
    with pytest.raises(ConnectionRefusedError):
        HeadWatch("127.0.0.1:9").answers()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert HeadWatch(address).answers()
        assert HeadWatch(address, lambda: True).answers()
        assert not HeadWatch(address, lambda: False).answers()


def test_a_local_ray_needs_a_node_and_a_cluster_may_wait_for_one(monkeypatch, tmp_path):
    ray_environment.prepare("local")
    from sweeps.core.run import ray_cluster as runner

    asked = []

    class Watch(runner.HeadWatch):
        def __init__(self, address, has_nodes, on_loss):
            super().__init__(address, has_nodes, on_loss)
            asked.append(has_nodes)

    monkeypatch.setattr(runner, "HeadWatch", Watch)
    monkeypatch.setattr(runner.ray, "init", lambda **_: None)
    monkeypatch.setattr(runner.ray, "shutdown", lambda: None)
    context = SimpleNamespace(gcs_address="127.0.0.1:9")
    monkeypatch.setattr(runner.ray, "get_runtime_context", lambda: context)
    for address in ("127.0.0.1:9", "local"):
        with runner.connected(address, tmp_path / "ray.log"):
            pass
    cluster, local = asked
    assert cluster is None
    for is_alive in (True, False):
        monkeypatch.setattr(runner.ray, "nodes", lambda is_alive=is_alive: [{"Alive": is_alive}])
        assert local() == is_alive


def sleep_in_short_steps(seconds):
    """Sleep; an interrupt from a thread comes between two steps of Python, and ends no sleep."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_head_that_does_not_answer_is_lost(monkeypatch, capsys, obeyed_interrupt, tmp_path):
    ray_environment.prepare("local")
    from sweeps.core.run import ray_cluster as runner

    context = SimpleNamespace(gcs_address="127.0.0.1:9")
    monkeypatch.setattr(runner.ray, "init", lambda **_: None)
    monkeypatch.setattr(runner.ray, "shutdown", lambda: pytest.fail("it would wait for the head"))
    monkeypatch.setattr(runner.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(runner, "ASK_EVERY_S", 0.01)
    monkeypatch.setattr(runner, "PATIENCE_S", 0.05)
    monkeypatch.setattr(runner, "UNWINDING_S", 0.5)
    ended = threading.Event()
    monkeypatch.setattr(runner.os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(runner, "_kill_children", lambda: None)
    with (
        pytest.raises(
            runner.HeadLostError, match=r"head at 127\.0\.0\.1:9 is lost\. The same command goes on"
        ),
        runner.connected("127.0.0.1:9", tmp_path / "ray.log"),
    ):
        sleep_in_short_steps(30)
    # As where the process cannot end in that time: it says why it is ended.
    assert ended.wait(10)
    assert capsys.readouterr().err == f"Error: {runner.HeadWatch('127.0.0.1:9').loss}\n"


def test_auto_is_refused_where_several_clusters_run_on_the_machine(monkeypatch, tmp_path):
    ray_environment.prepare("auto")
    from sweeps.core.run import ray_cluster as runner

    joined = []

    def init(**options):
        joined.append(options["address"])
        raise ConnectionError("for this test, it is enough that it is asked")

    monkeypatch.setattr(runner.ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(runner, "find_gcs_addresses", lambda: frozenset({"10.0.0.1:6379"}))
    with pytest.raises(ConnectionError), runner.connected("auto", tmp_path / "ray.log"):
        pass
    assert joined == ["auto"]
    monkeypatch.setattr(runner, "find_gcs_addresses", lambda: frozenset({"b:6379", "a:6379"}))
    refusal = (
        r"expects one Ray cluster on this machine; 2 run here: a:6379, b:6379\. Name "
        r"one: --address a:6379"
    )
    log = tmp_path / "ray.log"
    with pytest.raises(ValueError, match=refusal), runner.connected("auto", log):
        pass
    # Ray takes this one for auto, and so it is named.
    monkeypatch.setenv("RAY_ADDRESS", "b:6379")
    with pytest.raises(ConnectionError), runner.connected("auto", tmp_path / "ray.log"):
        pass
    assert joined == ["auto", "auto"]


def test_rays_folder_is_the_drivers_own(monkeypatch, tmp_path):
    ray_environment.prepare("local")
    from sweeps.core.run import ray_cluster as runner

    given = {}

    def init(**options):
        # Ray opens the folder that it is given to all users.
        Path(options["_temp_dir"]).mkdir(mode=0o777)
        given.update(options)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(runner.ray, "init", init)
    monkeypatch.setattr(runner.ray, "shutdown", lambda: None)
    monkeypatch.setattr(
        runner.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:9")
    )
    with runner.connected("local", tmp_path / "ray.log"):
        folder = Path(given["_temp_dir"]).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (
            len(f"{folder}/ray/session_2026-11-29_17-12-16_123456_1234567/sockets/plasma_store")
            < 108
        )
    assert not folder.exists()


def test_nothing_that_ray_pickled_is_read():
    for module in (ROOT / "sweeps" / "core" / "run").glob("*.py"):
        assert not re.search(
            r"pickle\.load|get_pickled_error|tune\.Tuner|ResultGrid", module.read_text()
        )


@pytest.mark.parametrize(("cpus", "gpus"), [(9, 0), (5, 1), (1, 3)])
def test_a_trial_that_no_node_can_hold_is_refused(monkeypatch, tmp_path, cpus, gpus):
    ray_environment.prepare("local")
    from sweeps.core.run import ray_cluster as runner

    nodes = [
        ({"CPU": 8.0}, True),
        ({"CPU": 4.0, "GPU": 2.0}, True),
        ({"CPU": 64.0, "GPU": 8.0}, False),
    ]
    monkeypatch.setattr(
        runner.ray, "nodes", lambda: [{"Resources": has, "Alive": alive} for has, alive in nodes]
    )
    launch = Launch(tmp_path, cpus_per_trial=cpus, gpus_per_trial=gpus)
    with pytest.raises(ValueError, match=f"A trial needs {cpus} CPUs and {gpus} GPUs"):
        runner.check_resources(launch, may_grow=False)
    # A cluster may get another node; it is waited for.
    runner.check_resources(launch, may_grow=True)
    runner.check_resources(Launch(tmp_path, cpus_per_trial=4, gpus_per_trial=2), may_grow=False)


def test_a_worker_searches_the_folders_that_its_driver_searches(tmp_path, monkeypatch):
    """Its node may have been started with another PYTHONPATH, by somebody else, long before."""
    from sweeps.core.run import ray_worker

    monkeypatch.syspath_prepend(str(tmp_path))
    runs = SimpleNamespace(ledger=SimpleNamespace(run_dir=tmp_path.joinpath, storage=tmp_path))
    train_trial = ray_worker.trainable(runs, "study", "session", tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    searched = []
    monkeypatch.setattr(ray_worker, "run_trial", lambda *_: searched.extend(sys.path))
    monkeypatch.setattr(ray_worker, "Spec", lambda key: SimpleNamespace(key=key, scratch_bytes=0))
    channel = SimpleNamespace(node="aa", stop=threading.Event())
    monkeypatch.setattr(ray_worker, "_TuneChannel", lambda *_: channel)
    monkeypatch.setattr(ray_worker, "watched", lambda *_: nullcontext())
    train_trial({"trial": {"key": "k"}})
    assert searched[-1] == str(tmp_path)
