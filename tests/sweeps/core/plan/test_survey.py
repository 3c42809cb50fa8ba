"""What is missing of a study, and which training or evaluation makes it."""

import dataclasses
import shutil

import pytest

from sweeps.core.design.designs import Grid, OneFactor, SideBySide
from sweeps.core.design.factors import Factor
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan.survey import survey
from sweeps.core.store import identity as identity_module
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.ledger_entry import Origin
from sweeps.core.store.runs import Runs
from toco.train.loop import train

TINY = {
    "data.num_train": 8,
    "data.num_val": 4,
    "num_steps": 2,
    "evaluate_every": 1,
    "batch_size": 4,
    "optim.warmup_steps": 0,
    "evaluate.num_pictures": 1,
    "keep_checkpoints": 1,
}
THRESHOLDS = Factor("evaluate.background_threshold", (0.3, 0.5, 0.6), 0.5)
FLIP = Factor("evaluate.cam_flip", (True, False), False)
BLOCKS = OneFactor((Factor("method.aux_block", (9, 8)),))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def make(data):
    def study(design, changes=None, seeds=(0,), **fields):
        changes = {**TINY, "evaluate.cam_flip": False, "data.root": str(data), **(changes or {})}
        varied = {path for block in design.blocks() for row in block.rows for path in row.changes}
        changes = {path: value for path, value in changes.items() if path not in varied}
        options = {"purpose": "direction", "repeat_base": False, **fields}
        return Study(
            "example",
            "An example",
            "shapes_nano",
            design,
            seeds,
            (Metric("val/cam_miou", "M"),),
            changes,
            **options,
        )

    return study


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run folders by digest, trained once in all tests."""
    root, known = tmp_path_factory.mktemp("trained"), {}

    def run(trial):
        if trial.digest not in known:
            known[trial.digest] = root / trial.digest
            train(trial.config, known[trial.digest], progress=False)
        return known[trial.digest]

    return run


@pytest.fixture
def finish(trained, tmp_path):
    """Enter a trial of a situation as if it had been trained."""

    def enter(situation, number):
        key = situation.keys[number]
        situation.runs.publish(key, trained(situation.plan.trials[number]))
        assert situation.runs.settle(
            key,
            situation.identities[number],
            Origin("example", "shapes_nano"),
            {"cpus": 1.0, "gpus": 0.0},
        )
        return key

    return enter


@pytest.fixture
def look(tmp_path):
    return lambda study: survey(study, tmp_path / "results")


def short(tasks, situation):
    """Number of the trial, number of its source, way; in the order of the trials."""
    number = {key: n for n, key in enumerate(situation.keys)}
    return sorted(
        (number[t.key], None if t.source is None else number.get(t.source, t.source), t.way)
        for t in tasks
    )


def without(situation, number):
    """All trials but one."""
    return [task for key, task in situation.trials().items() if key != situation.keys[number]]


def with_other_code(monkeypatch, module):
    """The code of ``module`` is another one from now on."""
    real = identity_module.code_digests

    def edited(*arguments):
        found = real(*arguments)
        return found | ({module: "0" * 16} if module in found else {})

    identity_module._code.cache_clear()
    monkeypatch.setattr(identity_module, "code_digests", edited)


@pytest.fixture(autouse=True)
def _forget_code():
    yield
    identity_module._code.cache_clear()


def test_what_is_not_there_is_missing(make, look, finish):
    situation = look(make(BLOCKS, seeds=(0, 1)))
    assert [task.name for task in situation.missing()] == [
        trial.name for trial in situation.plan.trials
    ]
    now, later = situation.tasks()
    assert short(now, situation) == [(number, None, None) for number in range(4)]
    assert later == []
    finish(situation, 1)
    assert [task.key for task in situation.missing()] == [situation.keys[n] for n in (0, 2, 3)]
    others = without(situation, 0)
    assert [task.key for task in situation.missing(others)] == list(situation.keys[2:])
    now, _ = situation.tasks(others)
    assert short(now, situation) == [(2, None, None), (3, None, None)]


def test_trials_that_differ_in_their_evaluation_wait_for_one_training(make, look, finish):
    situation = look(make(SideBySide((OneFactor((THRESHOLDS,)), BLOCKS))))
    thresholds = [trial.config.evaluate.background_threshold for trial in situation.plan.trials]
    blocks = [trial.config.method.aux_block for trial in situation.plan.trials]
    base, other = thresholds.index(0.5), blocks.index(8)
    waiting = [number for number in range(4) if number not in (base, other)]
    now, later = situation.tasks()
    # The base, which the others are compared with, is trained for all of them.
    assert short(now, situation) == [(number, None, None) for number in sorted((base, other))]
    assert short(later, situation) == [(number, base, "rescore") for number in waiting]
    # Given up, it makes room for the next.
    now, later = situation.tasks(without(situation, base))
    assert short(now, situation) == [(number, None, None) for number in sorted((waiting[0], other))]
    assert short(later, situation) == [(waiting[1], waiting[0], "rescore")]
    finish(situation, base)
    now, later = situation.tasks()
    assert short(now, situation) == sorted(
        [(number, base, "rescore") for number in waiting] + [(other, None, None)]
    )
    assert later == []
    # Told that the source is of no use, it trains.
    now, later = situation.tasks(afresh=[situation.keys[waiting[0]]])
    assert (waiting[0], None, None) in short(now, situation)


def test_the_training_that_has_come_furthest_goes_on(make, look, trained):
    situation = look(make(OneFactor((THRESHOLDS,))))
    begun = trained(situation.plan.trials[2])
    run_dir = situation.ledger.run_dir(situation.keys[2])
    shutil.copytree(begun / "checkpoints", run_dir / "checkpoints")
    now, later = situation.tasks()
    assert short(now, situation) == [(2, None, None)]
    assert {task.source for task in later} == {situation.keys[2]}
    assert situation.begun(now + later) == {situation.keys[2]: 2}


def test_what_no_kept_checkpoint_can_serve_is_trained(make, look, finish):
    """A run folder keeps the newest checkpoint, which makes one evaluation
    and not the mean of two.
    """
    for average_last, ways in ((1, [(1, 0, "evaluate")]), (2, [(1, None, None)])):
        situation = look(make(OneFactor((FLIP,)), {"evaluate.average_last": average_last}))
        flips = [trial.config.evaluate.cam_flip for trial in situation.plan.trials]
        base, flipped = flips.index(False), flips.index(True)
        expected = [(flipped, base if source is not None else None, way) for _, source, way in ways]
        now, later = situation.tasks()
        assert (
            short([task for task in now + later if task.key == situation.keys[flipped]], situation)
            == expected
        )
        finish(situation, base)
        # And so it is when it is there.
        now, later = situation.tasks()
        assert short(now, situation) == expected
        assert later == []


def test_how_often_is_evaluated_belongs_to_the_training(make, look, finish):
    finish(look(make(OneFactor((Factor("method.aux_block", (9,)),)))), 0)
    situation = look(make(OneFactor((Factor("evaluate_every", (2,)),))))
    now, later = situation.tasks()
    assert short(now + later, situation) == [(0, None, None)]


def test_what_other_code_counted_is_evaluated_again(make, look, finish, monkeypatch):
    before = look(make(OneFactor((THRESHOLDS,))))
    base = finish(
        before,
        [trial.config.evaluate.background_threshold for trial in before.plan.trials].index(0.5),
    )
    with_other_code(monkeypatch, "toco.evaluate.evaluator")
    situation = look(make(OneFactor((THRESHOLDS,))))
    assert not set(situation.keys) & set(before.keys)
    now, later = situation.tasks()
    assert short(now + later, situation) == [(number, base, "evaluate") for number in range(3)]
    # One of them evaluated, it has counted what the others need.
    run_dir = situation.ledger.run_dir(base)
    shutil.rmtree(run_dir / "checkpoints")
    now, later = situation.tasks()
    assert [task.way for task in now + later] == [None, "rescore", "rescore"]
    assert situation.reasons(now)["code changed: toco.evaluate.evaluator"] == 1
    finish(situation, 0)
    now, later = situation.tasks()
    assert short(now + later, situation) == [(number, 0, "rescore") for number in (1, 2)]


def test_other_training_code_leaves_no_source(make, look, finish, monkeypatch):
    finish(look(make(OneFactor((THRESHOLDS,)))), 0)
    with_other_code(monkeypatch, "toco.losses.ptc")
    now, later = look(make(OneFactor((THRESHOLDS,)))).tasks()
    assert [task.source for task in now] == [None]
    assert [task.way for task in later] == ["rescore", "rescore"]


def test_a_training_that_was_validated_on_other_images_is_no_source(make, look, finish):
    situation = look(make(OneFactor((THRESHOLDS,))))
    finish(situation, 0)
    inputs = tuple({**read, "val": "0" * 64} for read in situation.inputs)
    identities = tuple(
        identity_module.identify(trial.config, situation.plan.study.train, read)
        for trial, read in zip(situation.plan.trials, inputs, strict=True)
    )
    assert [i.training_key for i in identities] == [i.training_key for i in situation.identities]
    now, later = dataclasses.replace(situation, inputs=inputs, identities=identities).tasks()
    assert len(now) == 1
    assert now[0].source is None
    assert {task.source for task in later} == {now[0].key}


def test_of_several_sources_one_that_serves_is_chosen(make, look, finish):
    situation = look(make(OneFactor((THRESHOLDS,))))
    sources = sorted(finish(situation, number) for number in (0, 1))
    for gone in sources:
        shutil.move(situation.ledger.run_dir(gone), situation.ledger.storage / "elsewhere")
        now, _ = situation.tasks()
        (kept,) = set(sources) - {gone}
        assert [(task.key, task.source) for task in now] == [(situation.keys[2], kept)]
        shutil.move(situation.ledger.storage / "elsewhere", situation.ledger.run_dir(gone))
    for source in sources:
        shutil.rmtree(situation.ledger.run_dir(source))
    now, _ = situation.tasks()
    assert [(task.key, task.source) for task in now] == [(situation.keys[2], None)]


def test_trainings_with_the_same_first_steps_share_them(make, look, finish):
    late = {"method.segmentation.start_step": 1, "method.energy.start_step": 1}
    weights = Factor("method.segmentation.weight", (0.1, 0.2))
    situation = look(make(Grid((weights, Factor("method.aux_block", (9, 8)))), late))
    now, _ = situation.tasks()
    assert [task.prefix_shared for task in now] == [True] * 4
    # With what is there already nothing is shared.
    blocks = [trial.config.method.aux_block for trial in situation.plan.trials]
    finish(situation, blocks.index(8))
    now, _ = situation.tasks()
    assert [task.prefix_shared for task in now] == [
        task.config.method.aux_block == 9 for task in now
    ]
    # Only this project's own training knows of prefixes.
    own = look(make(OneFactor((weights,)), late, train="tests.sweeps.core.fake_training:train"))
    assert not any(task.prefix_shared for task in own.tasks()[0])


def test_the_reasons_are_counted(make, look, finish, monkeypatch):
    situation = look(make(BLOCKS))
    assert situation.reasons(situation.tasks()[0]) == {}
    finish(situation, 0)
    with_other_code(monkeypatch, "toco.losses.ptc")
    changed = look(make(BLOCKS))
    # The other cell was never there.
    assert changed.reasons(changed.tasks()[0]) == {"code changed: toco.losses.ptc": 1}
    assert isinstance(changed.runs, Runs)
    assert isinstance(changed.ledger, Ledger)


def test_rounds_are_the_looks_that_may_follow(make, look):
    situation = look(make(BLOCKS, seeds=Sequential(looks=(2, 3, 5)), repeat_base=True))
    rounds = situation.rounds()
    # Two rows, and the A/A row, which has the seeds of the first look.
    assert [len(tasks) for tasks in rounds] == [2 * 2 + 2, 2, 4]
    assert rounds[0] == list(situation.trials().values())
    keys = [task.key for tasks in rounds for task in tasks]
    assert sorted(keys) == sorted(situation.keys)
    assert situation.looks_of_trials(task.key for task in rounds[0]) == [6]
    assert situation.looks_of_trials(keys) == [6, 2, 4]
    assert situation.looks_of_trials(task.key for task in rounds[2]) == [0, 0, 4]
    assert situation.looks_of_trials([]) == []
    fixed = look(make(BLOCKS, seeds=(0, 1)))
    assert [len(tasks) for tasks in fixed.rounds()] == [4]
    assert fixed.looks_of_trials(fixed.keys) == [4]


def test_a_configuration_is_served_by_one_that_differs_only_in_its_evaluation(make, look):
    design = SideBySide((OneFactor((THRESHOLDS,)), BLOCKS))
    situation = look(make(design, repeat_base=True))
    labels = [cell.label for cell in situation.plan.cells]
    base = next(row.cell for row in situation.plan.rows if row.role == "base")
    trained = [cell for cell, label in enumerate(labels) if "threshold" not in label]
    served = situation.served_by()
    assert [cell for cell, source in enumerate(served) if cell == source] == sorted(
        {base, *trained}
    )
    assert {served[cell] for cell in range(len(labels)) if cell not in trained} == {base}
