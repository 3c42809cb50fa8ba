"""A driver with backends of its own: how a study ends that breaks, what waits for what, what needs
no worker.
"""

import dataclasses
import errno
import itertools
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.core.design.designs import OneFactor, SideBySide
from sweeps.core.design.factors import Factor
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan import survey as situations
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import survey
from sweeps.core.run import driver
from sweeps.core.run.start import run_study
from sweeps.core.store import identity
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.runs import Runs, newest_step, seal
from sweeps.core.store.study_folder import StudyFolder
from toco import room
from toco.room import NoRoomError
from toco.train.loop import train
from toco.train.reevaluate import reevaluate
from toco.train.run_config import RunConfig

sys.path.insert(0, str(Path(__file__).parents[2]))
from fake_backend import FakeBackend
from fake_store import FakeStore

ONE = OneFactor((Factor("method.aux_block", (9,)),))


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
    options = {"purpose": "direction", "repeat_base": False, **fields}
    return Study("example", "An example", "shapes_nano", design, (0,), metrics, changes, **options)


@pytest.fixture
def tracker(monkeypatch):
    tracker = FakeStore()
    monkeypatch.setattr("sweeps.core.run.start.Tracker", lambda uri, experiment: tracker)
    monkeypatch.setattr("sweeps.core.plan.plan_text.probe", lambda *_, **__: ())
    return tracker


def breaking(error):
    """A backend whose trials end the driver."""

    def run(*_):
        raise error

    backend = FakeBackend()
    backend.run_one = run
    return backend


def no_leases(storage):
    return not [path for path in (storage / "leases").glob("*.json") if path.is_file()]


@pytest.mark.parametrize(("breaks_at", "parent"), [("connect", None), ("run", "FAILED")])
def test_a_study_that_breaks_leaves_no_run_that_seems_to_go_on(
    tmp_path, tracker, breaks_at, parent
):
    @contextmanager
    def connect(launch):
        if breaks_at == "connect":
            raise ConnectionError("connect broke")
        yield breaking(ConnectionError("run broke"))

    study = make(tmp_path, ONE)
    with pytest.raises(ConnectionError, match=f"{breaks_at} broke"):
        run_study(study, Launch(tmp_path / "results"), connect)
    assert tracker.parent == parent
    # Its leases went with it.
    assert no_leases(tmp_path / "results")


@pytest.mark.parametrize(
    ("error", "parent"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (NoRoomError("full"), "FAILED"),
        (LostLeaseError("taken over"), "RUNNING"),
    ],
)
def test_what_ends_a_study_on_the_way_is_handed_on_and_mlflow_knows(
    tmp_path, tracker, error, parent
):
    with pytest.raises(type(error)):
        run_study(make(tmp_path, ONE), Launch(tmp_path / "results"), breaking(error).connect)
    assert tracker.parent == parent
    assert no_leases(tmp_path / "results")


def test_without_room_in_the_storage_no_training_begins(tmp_path, monkeypatch, tracker):
    monkeypatch.setattr(driver, "shortage", lambda folder, needed: f"{folder} has no room.")
    backend = Trainer()
    with pytest.raises(NoRoomError, match="results has no room"):
        run_study(make(tmp_path, ONE), Launch(tmp_path / "results"), backend.connect)
    assert backend.connections == 0


def test_a_disk_that_fills_up_on_the_way_is_named(tmp_path, monkeypatch, tracker):
    disks = []

    def run_one(*_):
        disks.append("full")
        raise OSError(errno.ENOSPC, "No space left on device")

    def shortage(folder, needed):
        return f"{folder} has no room for {needed} bytes." if disks else None

    backend = FakeBackend()
    backend.run_one = run_one
    monkeypatch.setattr(room, "shortage", shortage)
    with pytest.raises(NoRoomError, match=r"results has no room for 0 bytes"):
        run_study(make(tmp_path, ONE), Launch(tmp_path / "results"), backend.connect)


def test_a_trial_whose_run_folder_cannot_be_written_is_given_up(tmp_path, tracker, capsys):
    backend = FakeBackend(lambda spec, folder: None)
    assert run_study(make(tmp_path, ONE), Launch(tmp_path / "results"), backend.connect) == 4
    assert len(backend.specs) == 1
    printed = capsys.readouterr().out
    assert "Stopped" not in printed
    assert ", seed 0 could not be stored; the log has the error. The same command tries" in printed
    assert " failed " not in printed


class Trainer(FakeBackend):
    """Trains in this process what it is given, and keeps the keys."""

    def __init__(self):
        super().__init__(self.make)
        self.trained, self.evaluated = [], []

    def make(self, spec, folder):
        config = RunConfig.model_validate(spec.config)
        if spec.source is None:
            train(config, folder, recipe=spec.recipe, progress=False)
            self.trained.append(spec.key)
        else:
            self.evaluated.append(spec.key)
            reevaluate(Path(spec.source), folder, config, "evaluate", recipe=spec.recipe)


def test_a_threshold_of_the_evaluation_costs_no_training(tmp_path, tracker):
    trainer = Trainer()
    path = "evaluate.background_threshold"
    thresholds = Factor(path, (0.3, 0.5, 0.6), 0.5)
    study = make(tmp_path, SideBySide((OneFactor((thresholds,)),)))
    status = run_study(study, Launch(tmp_path / "results"), trainer.connect)
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
        assert (
            entry.config["evaluate"]["background_threshold"]
            == trial.config.evaluate.background_threshold
        )
    # A study that shares a cell has it already; what it has more is all that is trained.
    other = make(tmp_path, OneFactor((Factor("method.aux_block", (9, 8)),)))
    assert run_study(other, Launch(tmp_path / "results"), trainer.connect) == 0
    assert len(trainer.trained) == 2
    # Nothing is left: no backend, no tracker.
    tracker.parent = None
    assert run_study(other, Launch(tmp_path / "results"), connect=None) == 0
    assert tracker.parent is None


def test_an_underpowered_study_is_refused_unless_that_is_accepted(tmp_path, tracker):
    trainer = Trainer()
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9, 8)),)), purpose="effect")
    with pytest.raises(
        ValueError, match=r"cannot answer its 1 declared comparison.*--accept-underpowered"
    ):
        run_study(study, Launch(tmp_path / "results"), trainer.connect)
    assert trainer.trained == []
    assert not (tmp_path / "results" / study.resolve().folder_name).exists()
    accepted = Launch(tmp_path / "results", accept_underpowered=True)
    assert run_study(study, accepted, trainer.connect) == 0
    assert len(trainer.trained) == 2


THRESHOLDS = OneFactor((Factor("evaluate.background_threshold", (0.3, 0.5), 0.5),))


def entries(study, storage):
    situation = survey(study, storage)
    return [situation.ledger.entry(key) for key in situation.keys]


def test_another_rhythm_of_evaluations_is_another_training(tmp_path, tracker):
    trainer, start = Trainer(), Launch(tmp_path / "results")
    study = make(tmp_path, ONE)
    assert run_study(study, start, trainer.connect) == 0
    other = dataclasses.replace(study, changes={**study.changes, "evaluate_every": 1})
    assert run_study(other, start, trainer.connect) == 0
    assert len(trainer.trained) == 2
    assert trainer.evaluated == []


def test_changed_code_of_the_evaluation_evaluates_again(tmp_path, monkeypatch, tracker):
    """What the old code counted says nothing of what the new code would find."""
    trainer, start = Trainer(), Launch(tmp_path / "results")
    study = make(tmp_path, THRESHOLDS)
    assert run_study(study, start, trainer.connect) == 0
    before = entries(study, start.storage)
    real = identity.code_digests
    identity._code.cache_clear()
    monkeypatch.setattr(
        identity,
        "code_digests",
        lambda roots, without, *own: (
            real(roots, without, *own) | ({} if without else {"toco.evaluate.evaluator": "0" * 16})
        ),
    )
    try:
        assert run_study(study, start, trainer.connect) == 0
        after = entries(study, start.storage)
    finally:
        identity._code.cache_clear()
    assert len(trainer.trained) == 1
    assert len(trainer.evaluated) == 2
    assert not {entry.key for entry in before} & {entry.key for entry in after}
    for entry in after:
        assert entry.provenance["reevaluated"]["rescored"] is False
        assert entry.origin.derived_from == trainer.trained[0]


def test_a_source_that_turns_out_to_be_damaged_costs_a_training_and_not_the_study(
    tmp_path, tracker
):
    trainer, start = Trainer(), Launch(tmp_path / "results")
    assert run_study(make(tmp_path, ONE), start, trainer.connect) == 0
    scales = OneFactor((Factor("evaluate.cam_flip", (True, False), True),))
    for study, evaluated in ((make(tmp_path, THRESHOLDS), 0), (make(tmp_path, scales), 1)):
        for key in trainer.trained:
            run_dir = Ledger(start.storage).run_dir(key)
            (tensors,) = run_dir.glob("checkpoints/*/tensors.safetensors")
            tensors.write_bytes(b"damaged")
            (evaluation,) = run_dir.glob("evaluations/*.json")
            evaluation.write_text("{")
        assert run_study(study, start, trainer.connect) == 0
        assert len(trainer.evaluated) == evaluated
        entry = next(
            entry for entry in entries(study, start.storage) if entry.key != trainer.trained[0]
        )
        assert entry.attempts == 1
        assert entry.origin.derived_from is None
        assert trainer.trained[-1] == entry.key
    assert len(trainer.trained) == 3


def test_a_cell_that_was_begun_as_a_training_may_end_as_an_evaluation(tmp_path, tracker):
    trainer, start = Trainer(), Launch(tmp_path / "results")
    assert run_study(make(tmp_path, ONE), start, trainer.connect) == 0
    study = make(tmp_path, THRESHOLDS)
    situation = survey(study, start.storage)
    (missing,) = situation.missing()
    shutil.copytree(
        situation.ledger.run_dir(trainer.trained[0]), situation.ledger.run_dir(missing.key)
    )
    (situation.ledger.run_dir(missing.key) / "result.json").unlink()
    assert run_study(study, start, trainer.connect) == 0
    assert len(trainer.trained) == 1
    assert situation.ledger.entry(missing.key).origin.derived_from == trainer.trained[0]


def test_what_cannot_be_published_is_given_up_and_a_full_disk_ends_the_study(
    tmp_path, monkeypatch, tracker
):
    """The driver says so instead of trying for ever."""
    trainer, start = Trainer(), Launch(tmp_path / "results")
    assert run_study(make(tmp_path, ONE), start, trainer.connect) == 0
    errors = [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ENOSPC, "No space left on device"),
    ]

    def publish(*_):
        raise errors[0]

    monkeypatch.setattr(Runs, "publish", publish)
    with pytest.warns(UserWarning, match="could not be written: OSError.5"):
        assert run_study(make(tmp_path, THRESHOLDS), start, trainer.connect) == 4
    del errors[0]
    with pytest.raises(NoRoomError, match="results has no room"):
        run_study(make(tmp_path, THRESHOLDS), start, trainer.connect)
    assert len(trainer.specs) == 1


def test_a_trial_starts_as_soon_as_what_it_waits_for_has_ended(tmp_path, tracker):
    """Before the trainings that wait for a worker, too."""
    flips = Factor("evaluate.cam_flip", (True, False))
    blocks = Factor("method.aux_block", (9, 8, 7))
    designs = SideBySide((THRESHOLDS, OneFactor((flips,)), OneFactor((blocks,))))
    study, storage, stored = make(tmp_path, designs), tmp_path / "results", []
    trainer = Trainer()
    run_one = trainer.run_one

    def noting(spec, *arguments):
        stored.append(len(list(storage.glob("ledger/??/*.json"))))
        run_one(spec, *arguments)

    trainer.run_one = noting
    assert run_study(study, Launch(storage), trainer.connect) == 0
    config = [spec.config for spec in trainer.specs]
    made = [
        (one["method"]["aux_block"], spec.source is not None)
        for one, spec in zip(config, trainer.specs, strict=True)
    ]
    # The evaluation with another flip is next after its training; the other threshold is there by
    # then.
    assert sorted(made) == [(7, False), (8, False), (9, False), (9, True)]
    first = made.index((9, False))
    assert made[first + 1] == (9, True)
    assert stored[first + 1] == stored[first] + 2


def test_what_a_lost_driver_of_another_study_had_received_is_not_lost(tmp_path, tracker):
    trainer, start = Trainer(), Launch(tmp_path / "results")
    assert run_study(make(tmp_path, ONE), start, trainer.connect) == 0
    ledger = Ledger(start.storage)
    other, held = "ab" * 10, "cd" * 10
    for key in (other, held):
        snapshot = start.storage / "tune" / "gone" / "experiment" / key / "checkpoint_000000"
        shutil.copytree(ledger.run_dir(trainer.trained[0]), snapshot)
        seal(snapshot)
    with Leases(start.storage, "another driver") as leases:
        leases.acquire([held])
        study = make(tmp_path, OneFactor((Factor("method.aux_block", (8,)),)))
        assert run_study(study, start, trainer.connect) == 0
        assert newest_step(ledger.run_dir(other)) == 2
        # Whoever runs it now publishes it, if need be later.
        assert newest_step(ledger.run_dir(held)) == -1
        assert leases.acquire([other]) == {other}
    left = [path.name for path in (start.storage / "tune" / "gone" / "experiment").iterdir()]
    assert left == [held]


def test_a_driver_that_lost_a_lease_leaves_the_trial_to_the_other(tmp_path, monkeypatch, tracker):
    """It was suspended for long; the other driver has the trial now, and enters it."""
    trainer, start = Trainer(), Launch(tmp_path / "results")
    assert run_study(make(tmp_path, ONE), start, trainer.connect) == 0
    study = make(tmp_path, THRESHOLDS)
    situation = survey(study, start.storage)
    (missing,) = situation.missing()
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
    monkeypatch.setattr(driver, "time", SimpleNamespace(sleep=wait, monotonic=time.monotonic))
    assert run_study(study, start, trainer.connect) == 0
    assert len(asked) == 1
    assert len(trainer.trained) == 1
    assert not situation.ledger.run_dir(missing.key).exists()


def test_a_driver_that_waits_lets_go_of_what_has_ended(tmp_path, monkeypatch, tracker):
    """Two drivers that wait for each other's finished trials would wait for ever."""
    trainer, start = Trainer(), Launch(tmp_path / "results")
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9, 8)),)))
    situation = survey(study, start.storage)
    first, second = situation.keys
    free = []
    with Leases(start.storage, "another driver") as other:
        assert other.acquire([second])

        def wait():
            free.append(other.acquire([first]) == {first})
            entry = situation.ledger.entry(first)
            assert situation.ledger.write(entry.model_copy(update={"key": second}))

        monkeypatch.setattr(driver, "_POLL_S", 0.0)
        trainer.idle = wait
        assert run_study(study, start, trainer.connect) == 0
    assert free == [True]
    assert trainer.trained == [first]


@pytest.mark.parametrize(
    ("uri", "parent", "said"),
    [
        (None, None, "does not have everything; the run folders do. To fill it: sync it\n"),
        ("http://127.0.0.1:5000", "FINISHED", "\nMLflow: http://127.0.0.1:5000/#/"),
    ],
)
def test_a_second_driver_writes_to_a_server_of_mlflow_and_not_to_a_database_file(
    tmp_path, tracker, capsys, uri, parent, said
):
    study, storage = make(tmp_path, ONE), tmp_path / "results"
    storage.mkdir()
    with StudyFolder(survey(study, storage).path).locked() as is_first:
        assert is_first
        launch = Launch(storage, uri, sync_command="sync it")
        assert run_study(study, launch, Trainer().connect) == 0
    assert tracker.parent == parent
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("sequential", [False, True])
def test_a_driver_leaves_what_living_drivers_run(
    tmp_path, monkeypatch, tracker, capsys, sequential
):
    """In a sequential study it stays, because the next look may need it."""
    trainer, storage, free = Trainer(), tmp_path / "results", []
    design = OneFactor((Factor("method.aux_block", (9, 8)),))
    study = make(tmp_path, design)
    if sequential:
        study = dataclasses.replace(study, seeds=Sequential((2, 3)))
    situation = survey(study, storage)
    others = list(situation.trials())[-1]
    monkeypatch.setattr(driver, "_POLL_S", 0.02)
    # A heart-beat of the other driver is missing at first: it may as well be dead.
    beats = {"beat_every_s": 0.3, "expires_s": 100.0}
    with Leases(storage, "another driver", **beats) as other:
        assert other.acquire([others])

        def idle():
            free.append(other.holds(others))
            if sequential and len(free) > 100:
                other.release([others])
            time.sleep(0.01)

        trainer.idle = idle
        status = run_study(study, Launch(storage, leave=True), trainer.connect)
    output = capsys.readouterr().out
    assert status == 0
    if sequential:
        assert others in trainer.trained
        assert "so this one ends" not in output
    else:
        assert others not in trainer.trained
        assert len(trainer.trained) == 1
        assert "The trial that is left is run by other drivers, so this one ends." in output


def test_an_error_while_the_driver_waits_is_its_own_and_not_the_backends(
    tmp_path, monkeypatch, tracker
):
    """Ray would bury it in a trace of its own."""
    trainer, start, reached = Trainer(), Launch(tmp_path / "results"), []
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9, 8)),)))
    _, second = survey(study, start.storage).keys
    run = trainer.run

    def running(*arguments):
        try:
            run(*arguments)
        except OSError as error:
            reached.append(error)
            raise

    def fail(leases, key):
        raise OSError(errno.EIO, "Input/output error")

    trainer.run = running
    monkeypatch.setattr(Leases, "silence_s", fail)
    with Leases(start.storage, "another driver") as other:
        assert other.acquire([second])
        with pytest.raises(OSError, match="Input/output error"):
            run_study(study, start, trainer.connect)
    assert reached == []


def test_many_rescored_trials_are_no_sources(tmp_path, monkeypatch, tracker):
    trainer, start = Trainer(), Launch(tmp_path / "results")
    assert run_study(make(tmp_path, ONE), start, trainer.connect) == 0
    assert run_study(make(tmp_path, THRESHOLDS), start, trainer.connect) == 0
    asked = []
    real = situations.way_from

    def way_from(source, *arguments, **options):
        asked.append(source.name)
        return real(source, *arguments, **options)

    monkeypatch.setattr(situations, "way_from", way_from)
    more = make(tmp_path, OneFactor((Factor("evaluate.background_threshold", (0.1, 0.6)),)))
    now, later = survey(more, start.storage).tasks()
    assert not later
    assert now
    assert set(asked) == {trainer.trained[0]}


def test_what_waits_for_a_worker_is_free_for_another_driver(tmp_path, tracker):
    storage, trainer = tmp_path / "results", Trainer()
    study = make(tmp_path, OneFactor((Factor("method.aux_block", (9, 8, 7)),)))
    situation = survey(study, storage)
    run_one = trainer.run_one
    with Leases(storage, "another driver") as other:

        def looking(spec, *arguments):
            waiting = {key for key in situation.keys if situation.ledger.entry(key) is None} - {
                spec.key
            }
            taken = other.acquire([*waiting, spec.key])
            other.release(taken)
            assert taken == waiting
            run_one(spec, *arguments)

        trainer.run_one = looking
        assert run_study(study, Launch(storage), trainer.connect) == 0
    assert len(trainer.trained) == 3


def test_the_backend_deals_with_its_events_while_many_trials_are_rescored(
    tmp_path, monkeypatch, tracker
):
    trainer, storage, idle = Trainer(), tmp_path / "results", []
    thresholds = Factor("evaluate.background_threshold", (0.3, 0.4, 0.5, 0.6), 0.5)
    trainer.idle = lambda: idle.append(len(list(storage.glob("ledger/??/*.json"))))
    seconds = itertools.count(step=0.6 * driver._SLICE_S)
    monkeypatch.setattr(
        driver, "time", SimpleNamespace(sleep=time.sleep, monotonic=lambda: next(seconds))
    )
    assert (
        run_study(make(tmp_path, OneFactor((thresholds,))), Launch(storage), trainer.connect) == 0
    )
    assert len(trainer.specs) == 1
    assert idle[:3] == [2, 3, 4]
