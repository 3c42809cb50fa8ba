"""How a launch that breaks leaves MLflow, with a runner that breaks, and what needs no runner at all."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import sweeps.core
from sweeps.core import launch, ray_environment
from sweeps.core.designs import OneFactor, SideBySide
from sweeps.core.factors import Factor, Stage
from sweeps.core.launch import run_study
from sweeps.core.ledger import Ledger
from sweeps.core.options import Launch
from sweeps.core.situation import survey
from sweeps.core.study import Metric, Study
from toco.train.loop import train


class Tracker:
    """A store that takes everything; says what became of the study's run."""

    def __init__(self):
        self.parent = None

    def ensure_parent(self, *_, **__):
        self.parent = "RUNNING"
        return "parent"

    def page(self):
        return None

    def track(self, *_, **__):
        return "run"

    def finish_parent(self, _, files, status, note):
        self.parent = status
        return True


TINY = {
    "data.num_train": 8,
    "data.num_val": 4,
    "num_steps": 2,
    "evaluate_every": 2,
    "batch_size": 4,
    "optim.warmup_steps": 0,
    "evaluate.num_pictures": 1,
}


def make(tmp_path, design, **fields):
    changes = {**TINY, "data.root": str(tmp_path)}
    metrics = (Metric("val/cam_miou", "M"),)
    options = {"purpose": "direction", "a_a": False, **fields}
    return Study("example", "An example", "shapes_nano", design, (0,), metrics, changes, **options)


@pytest.fixture
def tracker(monkeypatch):
    tracker = Tracker()
    monkeypatch.setattr(launch, "Tracker", lambda uri, experiment: tracker)
    monkeypatch.setattr(ray_environment, "prepare", lambda address: None)
    monkeypatch.setattr("sweeps.core.planning.probe", lambda *_, **__: ())
    return tracker


def use(monkeypatch, **functions):
    """A runner with these functions."""

    @contextmanager
    def connected(address):
        yield

    runner = {"connected": connected, "Resources": lambda *_: None, "check_resources": lambda *_, **__: None}
    monkeypatch.setattr(sweeps.core, "runner", SimpleNamespace(**{**runner, **functions}), raising=False)


@pytest.mark.parametrize(("breaks_at", "parent"), [("connected", None), ("check", None), ("run", "FAILED")])
def test_a_study_that_breaks_leaves_no_run_that_seems_to_go_on(tmp_path, monkeypatch, tracker, breaks_at, parent):
    def step(name):
        if name == breaks_at:
            raise ConnectionError(f"{name} broke")

    @contextmanager
    def connected(address):
        step("connected")
        yield

    use(
        monkeypatch,
        connected=connected,
        check_resources=lambda *_, **__: step("check"),
        run_trials=lambda *_: step("run"),
    )
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9,)),)))
    with pytest.raises(ConnectionError, match=f"{breaks_at} broke"):
        run_study(study, Launch(tmp_path / "results", address="local"))
    assert tracker.parent == parent
    # Its leases went with it.
    assert not [path for path in (tmp_path / "results" / "leases").glob("*.json") if path.is_file()]


class Trainer:
    """Trains in this process what the runner is given, and keeps the keys."""

    def __init__(self):
        self.trained, self.rounds = [], 0

    def __call__(self, specs, runs, session, resources, watch, name):
        self.rounds += 1
        for spec in specs:
            assert spec.source is None
            folder = session / spec.key
            config = launch_config(spec)
            train(config, folder, recipe=spec.recipe, progress=False)
            watch.snapshot(spec.key, folder)
            self.trained.append(spec.key)
        return frozenset(), True


def launch_config(spec):
    from toco.train.run_config import RunConfig

    return RunConfig.model_validate(spec.config)


def test_a_threshold_of_the_evaluation_costs_no_training(tmp_path, monkeypatch, tracker):
    trainer = Trainer()
    use(monkeypatch, run_trials=trainer)
    path = "evaluate.background_threshold"
    thresholds = Factor(path, (0.3, 0.5, 0.6), 0.5, stage=Stage.EVALUATE)
    study = make(tmp_path, SideBySide((OneFactor((thresholds,)),)))
    status = run_study(study, Launch(tmp_path / "results", address="local"))
    assert status == 0
    situation = survey(study, tmp_path / "results")
    assert len(trainer.trained) == 1
    assert situation.missing() == []
    ledger = Ledger(tmp_path / "results")
    entries = [ledger.entry(key) for key in situation.keys]
    assert {entry["origin"]["derived_from"] for entry in entries} == {None, trainer.trained[0]}
    # The same numbers as trainings that evaluate with those thresholds.
    for trial, entry in zip(situation.plan.trials, entries, strict=True):
        whole = train(trial.config, tmp_path / f"whole{trial.cell}", progress=False)
        assert entry["metrics"] == whole.metrics
        assert entry["config"]["evaluate"]["background_threshold"] == trial.config.evaluate.background_threshold
    # A study that shares a cell has it already; what it has more is all that is trained.
    other = make(tmp_path, OneFactor((Factor("method.aux_block", (9, 8)),)))
    assert run_study(other, Launch(tmp_path / "results", address="local")) == 0
    assert len(trainer.trained) == 2
    # Nothing is left: no runner, no tracker.
    use(monkeypatch)
    tracker.parent = None
    assert run_study(other, Launch(tmp_path / "results", address="local")) == 0
    assert tracker.parent is None


def test_an_underpowered_study_is_refused_unless_that_is_accepted(tmp_path, monkeypatch, tracker):
    trainer = Trainer()
    use(monkeypatch, run_trials=trainer)
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9, 8)),)), purpose="effect")
    with pytest.raises(ValueError, match=r"cannot answer its 1 declared comparison.*--accept-underpowered"):
        run_study(study, Launch(tmp_path / "results", address="local"))
    assert trainer.trained == []
    assert not (tmp_path / "results" / study.resolve().folder_name).exists()
    assert run_study(study, Launch(tmp_path / "results", address="local", accept_underpowered=True)) == 0
    assert len(trainer.trained) == 2
