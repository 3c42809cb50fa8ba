"""How a launch that breaks leaves MLflow, with a runner that breaks, and what needs no runner at all."""

import dataclasses
import errno
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.core.design.designs import OneFactor, SideBySide
from sweeps.core.design.factors import Factor, Stage
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan import ray_environment
from sweeps.core.plan import survey as situations
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import survey
from sweeps.core.run import driver as launch
from sweeps.core.run.driver import run_study
from sweeps.core.run.failures import failure_of
from sweeps.core.store import identity
from sweeps.core.store.leases import Leases
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.runs import Runs, newest_step, seal
from toco import room
from toco.room import NoRoomError
from toco.tracking import Pages
from toco.train.loop import train
from toco.train.reevaluate import reevaluate

sys.path.insert(0, str(Path(__file__).parents[2]))
from without_ray import run_without_ray


class Tracker:
    """A store that takes everything; says what became of the study's run."""

    def __init__(self):
        self.parent = None

    def ensure_parent(self, *_, **__):
        self.parent = "RUNNING"
        return "parent"

    def pages(self):
        return Pages("http://127.0.0.1:5000", "1")

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
    "evaluate.num_pictures": 0,
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
    monkeypatch.setattr("sweeps.core.plan.plan_text.probe", lambda *_, **__: ())
    return tracker


@pytest.mark.parametrize(("breaks_at", "parent"), [("connected", None), ("check", None), ("run", "FAILED")])
def test_a_study_that_breaks_leaves_no_run_that_seems_to_go_on(tmp_path, monkeypatch, tracker, breaks_at, parent):
    def step(name):
        if name == breaks_at:
            raise ConnectionError(f"{name} broke")

    @contextmanager
    def connected(address):
        step("connected")
        yield

    run_without_ray(
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


@pytest.mark.parametrize(("error", "parent"), [(KeyboardInterrupt(), "KILLED"), (NoRoomError("full"), "FAILED")])
def test_what_ends_a_study_on_the_way_is_handed_on_and_mlflow_knows(tmp_path, monkeypatch, tracker, error, parent):
    def run_trials(*_):
        raise error

    run_without_ray(monkeypatch, run_trials=run_trials)
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9,)),)))
    with pytest.raises(type(error)):
        run_study(study, Launch(tmp_path / "results", address="local"))
    assert tracker.parent == parent
    assert not [path for path in (tmp_path / "results" / "leases").glob("*.json") if path.is_file()]


def test_without_room_in_the_storage_no_training_begins(tmp_path, monkeypatch, tracker):
    run_without_ray(monkeypatch, run_trials=lambda *_: pytest.fail("a training began"))
    monkeypatch.setattr(launch, "shortage", lambda folder, needed: f"{folder} has no room.")
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9,)),)))
    with pytest.raises(NoRoomError, match="results has no room"):
        run_study(study, Launch(tmp_path / "results", address="local"))


def test_a_disk_that_fills_up_on_the_way_is_named(tmp_path, monkeypatch, tracker):
    disks = []

    def run_trials(*_):
        disks.append("full")
        raise OSError(errno.ENOSPC, "No space left on device")

    def shortage(folder, needed):
        return f"{folder} has no room for {needed} bytes." if disks else None

    run_without_ray(monkeypatch, run_trials=run_trials)
    monkeypatch.setattr(room, "shortage", shortage)
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9,)),)))
    with pytest.raises(NoRoomError, match=r"results has no room for 0 bytes"):
        run_study(study, Launch(tmp_path / "results", address="local"))


def test_a_trial_whose_run_folder_cannot_be_written_is_given_up_and_nobody_is_said_to_have_stopped_it(
    tmp_path, monkeypatch, tracker, capsys
):
    starts = []

    def run_trials(specs, *_):
        starts.append([spec.key for spec in specs])
        return frozenset()

    run_without_ray(monkeypatch, run_trials=run_trials)
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9,)),)))
    assert run_study(study, Launch(tmp_path / "results", address="local")) == 4
    assert len(starts) == 1
    assert "Stopped" not in capsys.readouterr().out


class Trainer:
    """Trains in this process what the runner is given, and keeps the keys."""

    def __init__(self):
        self.trained, self.evaluated = [], []

    def __call__(self, specs, runs, session, resources, watch, name):
        failed = set()
        for spec in specs:
            folder = session / spec.key
            config = launch_config(spec)
            if spec.source is None:
                train(config, folder, recipe=spec.recipe, progress=False)
                self.trained.append(spec.key)
            else:
                self.evaluated.append(spec.key)
                try:
                    reevaluate(Path(spec.source), folder, config, "evaluate", recipe=spec.recipe)
                except ValueError as error:
                    watch.failed(spec.key, failure_of(error, "w1", "node"))
                    failed.add(spec.key)
                    continue
            watch.snapshot(spec.key, folder)
        return frozenset(failed)


def launch_config(spec):
    from toco.train.run_config import RunConfig

    return RunConfig.model_validate(spec.config)


def test_a_threshold_of_the_evaluation_costs_no_training(tmp_path, monkeypatch, tracker):
    trainer = Trainer()
    run_without_ray(monkeypatch, run_trials=trainer)
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
    assert {entry.origin.derived_from for entry in entries} == {None, trainer.trained[0]}
    # The same numbers as trainings that evaluate with those thresholds.
    for trial, entry in zip(situation.plan.trials, entries, strict=True):
        whole = train(trial.config, tmp_path / f"whole{trial.cell}", progress=False)
        assert entry.metrics == whole.metrics
        assert entry.config["evaluate"]["background_threshold"] == trial.config.evaluate.background_threshold
    # A study that shares a cell has it already; what it has more is all that is trained.
    other = make(tmp_path, OneFactor((Factor("method.aux_block", (9, 8)),)))
    assert run_study(other, Launch(tmp_path / "results", address="local")) == 0
    assert len(trainer.trained) == 2
    # Nothing is left: no runner, no tracker.
    run_without_ray(monkeypatch)
    tracker.parent = None
    assert run_study(other, Launch(tmp_path / "results", address="local")) == 0
    assert tracker.parent is None


def test_an_underpowered_study_is_refused_unless_that_is_accepted(tmp_path, monkeypatch, tracker):
    trainer = Trainer()
    run_without_ray(monkeypatch, run_trials=trainer)
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9, 8)),)), purpose="effect")
    with pytest.raises(ValueError, match=r"cannot answer its 1 declared comparison.*--accept-underpowered"):
        run_study(study, Launch(tmp_path / "results", address="local"))
    assert trainer.trained == []
    assert not (tmp_path / "results" / study.resolve().folder_name).exists()
    assert run_study(study, Launch(tmp_path / "results", address="local", accept_underpowered=True)) == 0
    assert len(trainer.trained) == 2


ONE = OneFactor((Factor("method.aux_block", (9,)),))
THRESHOLDS = OneFactor((Factor("evaluate.background_threshold", (0.3, 0.5), 0.5, stage=Stage.EVALUATE),))


def entries(study, storage):
    situation = survey(study, storage)
    return [situation.ledger.entry(key) for key in situation.keys]


def test_another_rhythm_of_evaluations_is_another_training(tmp_path, monkeypatch, tracker):
    trainer, start = Trainer(), Launch(tmp_path / "results", address="local")
    run_without_ray(monkeypatch, run_trials=trainer)
    study = make(tmp_path, ONE)
    assert run_study(study, start) == 0
    assert run_study(dataclasses.replace(study, changes={**study.changes, "evaluate_every": 1}), start) == 0
    assert len(trainer.trained) == 2
    assert trainer.evaluated == []


def test_changed_code_of_the_evaluation_evaluates_again(tmp_path, monkeypatch, tracker):
    """What the old code counted says nothing of what the new code would find."""
    trainer, start = Trainer(), Launch(tmp_path / "results", address="local")
    run_without_ray(monkeypatch, run_trials=trainer)
    study = make(tmp_path, THRESHOLDS)
    assert run_study(study, start) == 0
    before = entries(study, start.storage)
    real = identity.code_digests
    identity._code.cache_clear()
    monkeypatch.setattr(
        identity,
        "code_digests",
        lambda roots, without: real(roots, without) | ({} if without else {"toco.evaluate.evaluator": "0" * 16}),
    )
    try:
        assert run_study(study, start) == 0
        after = entries(study, start.storage)
    finally:
        identity._code.cache_clear()
    assert len(trainer.trained) == 1
    assert len(trainer.evaluated) == 2
    assert not {entry.key for entry in before} & {entry.key for entry in after}
    for entry in after:
        assert entry.provenance["reevaluated"]["rescored"] is False
        assert entry.origin.derived_from == trainer.trained[0]


def test_a_source_that_turns_out_to_be_damaged_costs_a_training_and_not_the_study(tmp_path, monkeypatch, tracker):
    trainer, start = Trainer(), Launch(tmp_path / "results", address="local")
    run_without_ray(monkeypatch, run_trials=trainer)
    assert run_study(make(tmp_path, ONE), start) == 0
    scales = OneFactor((Factor("evaluate.cam_flip", (True, False), True, stage=Stage.EVALUATE),))
    for study, evaluated in ((make(tmp_path, THRESHOLDS), 0), (make(tmp_path, scales), 1)):
        for key in trainer.trained:
            run_dir = Ledger(start.storage).run_dir(key)
            (tensors,) = run_dir.glob("checkpoints/*/tensors.safetensors")
            tensors.write_bytes(b"damaged")
            (evaluation,) = run_dir.glob("evaluations/*.json")
            evaluation.write_text("{")
        assert run_study(study, start) == 0
        assert len(trainer.evaluated) == evaluated
        entry = next(entry for entry in entries(study, start.storage) if entry.key != trainer.trained[0])
        assert entry.attempts == 1
        assert entry.origin.derived_from is None
        assert trainer.trained[-1] == entry.key
    assert len(trainer.trained) == 3


def test_a_cell_that_was_begun_as_a_training_may_end_as_an_evaluation(tmp_path, monkeypatch, tracker):
    trainer, start = Trainer(), Launch(tmp_path / "results", address="local")
    run_without_ray(monkeypatch, run_trials=trainer)
    assert run_study(make(tmp_path, ONE), start) == 0
    study = make(tmp_path, THRESHOLDS)
    situation = survey(study, start.storage)
    ((_, missing),) = situation.missing()
    shutil.copytree(situation.ledger.run_dir(trainer.trained[0]), situation.ledger.run_dir(missing.key))
    (situation.ledger.run_dir(missing.key) / "result.json").unlink()
    assert run_study(study, start) == 0
    assert len(trainer.trained) == 1
    assert situation.ledger.entry(missing.key).origin.derived_from == trainer.trained[0]


def test_what_cannot_be_published_is_given_up(tmp_path, monkeypatch, tracker):
    """Such as with a full disk: the driver says so instead of trying for ever."""
    trainer, start = Trainer(), Launch(tmp_path / "results", address="local")
    run_without_ray(monkeypatch, run_trials=trainer)
    assert run_study(make(tmp_path, ONE), start) == 0

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Runs, "publish", full)
    assert run_study(make(tmp_path, THRESHOLDS), start) == 4
    monkeypatch.undo()


def test_what_a_lost_driver_of_another_study_had_received_is_not_lost(tmp_path, monkeypatch, tracker):
    trainer, start = Trainer(), Launch(tmp_path / "results", address="local")
    run_without_ray(monkeypatch, run_trials=trainer)
    assert run_study(make(tmp_path, ONE), start) == 0
    ledger = Ledger(start.storage)
    other, held = "ab" * 10, "cd" * 10
    for key in (other, held):
        snapshot = start.storage / "tune" / "gone" / "experiment" / key / "checkpoint_000000"
        shutil.copytree(ledger.run_dir(trainer.trained[0]), snapshot)
        seal(snapshot)
    with Leases(start.storage, "another driver") as leases:
        leases.acquire([held])
        assert run_study(make(tmp_path, OneFactor((Factor("method.aux_block", (8,)),))), start) == 0
        assert newest_step(ledger.run_dir(other)) == 2
        # Whoever runs it now publishes it, if need be later.
        assert newest_step(ledger.run_dir(held)) == -1
        assert leases.acquire([other]) == {other}
    left = [path.name for path in (start.storage / "tune" / "gone" / "experiment").iterdir()]
    assert left == [held]


def test_a_driver_that_lost_a_lease_leaves_the_trial_to_the_other(tmp_path, monkeypatch, tracker):
    """It was suspended for long; the other driver has the trial now, and enters it."""
    trainer, start = Trainer(), Launch(tmp_path / "results", address="local")
    run_without_ray(monkeypatch, run_trials=trainer)
    assert run_study(make(tmp_path, ONE), start) == 0
    study = make(tmp_path, THRESHOLDS)
    situation = survey(study, start.storage)
    ((_, missing),) = situation.missing()
    asked = []

    def acquire(self, keys):
        got = set(real(self, keys))
        if missing.key in keys:
            asked.append(missing.key)
        return got if len(asked) < 2 else got - {missing.key}

    def wait(_):
        # The other one ends its work.
        entry = situation.ledger.entry(trainer.trained[0])
        assert situation.ledger.write(entry.model_copy(update={"key": missing.key}))

    real = Leases.acquire
    monkeypatch.setattr(Leases, "acquire", acquire)
    # It holds the lease when it takes it, and not any more when it has evaluated.
    held = iter([True])
    monkeypatch.setattr(Leases, "holds", lambda self, key: key != missing.key or next(held, False))
    monkeypatch.setattr(launch, "time", SimpleNamespace(sleep=wait, monotonic=time.monotonic))
    assert run_study(study, start) == 0
    assert len(asked) == 2
    assert len(trainer.trained) == 1
    assert not situation.ledger.run_dir(missing.key).exists()


def test_a_driver_that_waits_lets_go_of_what_has_ended(tmp_path, monkeypatch, tracker):
    """Two drivers that wait for each other's finished trials would wait for ever."""
    trainer, start = Trainer(), Launch(tmp_path / "results", address="local")
    run_without_ray(monkeypatch, run_trials=trainer)
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9, 8)),)))
    situation = survey(study, start.storage)
    first, second = situation.keys
    free = []
    with Leases(start.storage, "another driver") as other:
        assert other.acquire([second])

        def wait(_):
            free.append(other.acquire([first]) == {first})
            entry = situation.ledger.entry(first)
            assert situation.ledger.write(entry.model_copy(update={"key": second}))

        monkeypatch.setattr(launch, "time", SimpleNamespace(sleep=wait, monotonic=time.monotonic))
        assert run_study(study, start) == 0
    assert free == [True]
    assert trainer.trained == [first]


def test_many_rescored_trials_are_no_sources(tmp_path, monkeypatch, tracker):
    trainer, start = Trainer(), Launch(tmp_path / "results", address="local")
    run_without_ray(monkeypatch, run_trials=trainer)
    assert run_study(make(tmp_path, ONE), start) == 0
    assert run_study(make(tmp_path, THRESHOLDS), start) == 0
    asked = []
    real = situations.way_from

    def way_from(source, *arguments, **options):
        asked.append(source.name)
        return real(source, *arguments, **options)

    monkeypatch.setattr(situations, "way_from", way_from)
    more = make(tmp_path, OneFactor((Factor("evaluate.background_threshold", (0.1, 0.6), stage=Stage.EVALUATE),)))
    now, later = survey(more, start.storage).tasks()
    assert not later
    assert now
    assert set(asked) == {trainer.trained[0]}
