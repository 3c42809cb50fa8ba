"""A driver of a sequential study without Ray: who gets seeds, and what no interruption changes."""

import sys
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.core.design.seeds import Futility, Sequential
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import survey
from sweeps.core.run import driver, start
from sweeps.core.run.start import run_study
from sweeps.core.run.study_proposer import StudyProposer
from sweeps.core.store.leases import Leases
from sweeps.layer_ablation import STUDY as LAYER_ABLATION

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from fake_backend import LostError
from fake_store import FakeStore
from sequential_study import (
    CLAIMS,
    DIFFERENCES,
    LOOKS,
    NEEDED,
    STUDY,
    Trainings,
    place_of,
    store,
    value,
)

TABLES = ("table.csv", "table.md", "table.tex")
BASE, AGAIN = 9, (5, 6, 7)
"""Block of the base, and seeds of the A/A row."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No store, and a page without figures, which take seconds to draw."""
    monkeypatch.setattr(start, "Tracker", FakeStore)
    empty = SimpleNamespace(html="", details={}, remarks=())
    monkeypatch.setattr("sweeps.core.report.report.page", lambda *_: empty)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tables of a study that nobody interrupted."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(start, "Tracker", FakeStore)
        storage, trainings = tmp_path_factory.mktemp("whole"), Trainings()
        assert run_study(STUDY, Launch(storage), trainings.connect) == 0
    assert set(trainings.trained) == needed()
    assert len(trainings.trained) == 21
    return tables(storage)


def tables(storage, study=STUDY):
    folder = survey(study, storage).path
    return {name: (folder / name).read_bytes() for name in TABLES}


def needed():
    """Block and seed of every training that the study needs."""
    rows = {7: NEEDED["#8"], 8: NEEDED["#9"], 9: NEEDED["#10"], 10: NEEDED["#11"]}
    seeds = {(block, seed) for block, number in rows.items() for seed in range(number)}
    return seeds | {(BASE, seed) for seed in AGAIN}


class Study:
    """A study whose trainings end when a test says so, without a driver."""

    def __init__(self, storage, study=STUDY, *, ahead=False, values=value):
        self.situation = survey(study, storage)
        self.proposer = StudyProposer(self.situation, ahead=ahead)
        self.values = values
        self.waiting = {}
        self.ask(is_idle=False)

    def ask(self, *, is_idle):
        """Ask for trials; return places of the new ones."""
        new = {place_of(task): task for task in self.proposer.propose(is_idle=is_idle)}
        assert not new.keys() & self.waiting.keys()
        self.waiting |= new
        return set(new)

    def end(self, place, *, is_idle=False):
        """End the training of a block and a seed; return places of the trials that start."""
        task = self.waiting.pop(place)
        store(self.situation, place, self.values(*place))
        assert self.proposer.ended(task.key)
        return self.ask(is_idle=is_idle)


def test_seeds_go_to_rows_of_open_claims_as_soon_as_a_look_is_complete(tmp_path):
    study = Study(tmp_path)
    first = {(block, seed) for block in DIFFERENCES for seed in range(3)}
    assert set(study.waiting) == first | {(BASE, seed) for seed in AGAIN}
    *others, last = sorted(first)
    assert [study.end(place) for place in others] == [set()] * 11
    # The A/A row takes no part in a claim, so nobody waits for it.
    assert study.end(last) == {(8, 3), (9, 3), (10, 3)}
    assert set(study.waiting) >= {(BASE, seed) for seed in AGAIN}
    assert [study.end((block, 3)) for block in (10, 9)] == [set(), set()]
    assert study.end((8, 3)) == {(8, 4), (9, 4), (10, 4)}
    assert study.proposer.unfinished()
    for place in [*study.waiting]:
        assert study.end(place) == set()
    assert study.proposer.is_done
    assert study.proposer.unfinished() == []
    assert {place_of(task) for task in study.proposer.trials.values()} == needed()


def test_only_the_last_look_is_followed_by_none(tmp_path):
    study = Study(tmp_path)
    assert not study.proposer.is_at_last_look
    starts = []
    while study.waiting:
        started = study.end(min(study.waiting))
        if started:
            starts.append((started, study.proposer.is_at_last_look))
    assert starts == [
        ({(8, 3), (9, 3), (10, 3)}, False),
        ({(8, 4), (9, 4), (10, 4)}, True),
    ]


def test_the_base_goes_on_for_one_open_claim_and_not_for_none(tmp_path):
    """#8 alone is open, or all are shown at the first look."""

    def all_but(*open_blocks):
        return lambda block, seed: value(block if block in (BASE, *open_blocks) else 7, seed)

    for number, open_blocks in enumerate([(10,), ()]):
        study = Study(tmp_path / str(number), values=all_but(*open_blocks))
        started = set()
        for place in [*study.waiting]:
            started |= study.end(place)
        assert started == ({(9, 3), (10, 3)} if open_blocks else set())


def test_a_claim_that_is_given_up_gets_no_more_seeds(tmp_path):
    """With 3 seeds, #11 differs by less than half a standard deviation of the differences."""
    rules = Sequential(LOOKS, futility=Futility(from_seeds=3))
    study = Study(tmp_path, replace(STUDY, seeds=rules))
    started = set()
    for place in [*study.waiting]:
        started |= study.end(place)
    assert started == {(8, 3), (9, 3)}


def test_a_row_of_a_shown_comparison_gets_no_seeds_for_another_one_of_its_claim(tmp_path):
    """The auxiliary CAM is best at #10: that it exceeds #9 is open, #8 and #11 are shown."""
    study = replace(LAYER_ABLATION, changes=STUDY.changes, train=STUDY.train, repeat_base=False)
    situation = survey(study, tmp_path)
    proposer = StudyProposer(situation)
    waiting = proposer.propose(is_idle=False)
    assert len(waiting) == 12
    for task in waiting:
        block, seed = place_of(task)
        far = value(BASE if block == BASE else 7, seed)
        store(situation, (block, seed), far, aux_cam_miou=value(8, seed) if block == 8 else far)
        assert proposer.ended(task.key)
    following = {place_of(task) for task in proposer.propose(is_idle=False)}
    assert following == {(block, seed) for block in (8, BASE) for seed in (3, 4)}
    assert [claim.outcome for claim in situation.looks().claims] == ["shown", "shown", "open"]


@pytest.mark.parametrize("number", range(22))
def test_a_start_after_any_number_of_trainings_asks_for_the_others(tmp_path, number):
    study = Study(tmp_path)
    trained = []
    while len(trained) < number:
        trained.append(next(iter(study.waiting)))
        study.end(trained[-1])
    again = Study(tmp_path)
    assert again.proposer.news() == []
    while again.waiting:
        trained.append(next(iter(again.waiting)))
        again.end(trained[-1])
    assert len(trained) == 21
    assert set(trained) == needed()


class Lost(Trainings):
    """Is lost when the ledger has one more training, before anybody is told."""

    def run_one(self, spec, proposer, listener, runs, session):
        self.train(spec, folder := session / "trials" / spec.key)
        listener.snapshot(spec.key, folder)
        raise LostError


class NoPage:
    """No page while the study runs."""

    def __init__(self, *_):
        pass

    def start(self):
        pass

    changed = close = start

    def progress(self, *_):
        pass


def test_a_study_that_is_lost_after_every_training_ends_with_the_same_table(
    tmp_path, monkeypatch, whole, capsys
):
    monkeypatch.setattr(driver, "LivePage", NoPage)
    trained, told = [], []
    for _ in range(21):
        backend = Lost()
        with pytest.raises(LostError):
            run_study(STUDY, Launch(tmp_path), backend.connect)
        trained += backend.trained
        told += looks_told(capsys)
    assert sorted(trained) == sorted(needed())
    # The trainings are all there, but no start has come to its end.
    assert run_study(STUDY, Launch(tmp_path), connect=None) == 0
    assert tables(tmp_path) == whole
    # Every start was lost before it could tell of its look, and looks of earlier starts are no
    # news.
    assert told == []


def looks_told(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("Look ")]


def test_the_driver_says_once_what_each_look_has_decided(tmp_path, capsys, whole):
    capsys.readouterr()
    order = []

    def stop(block, seed):
        order.append((block, seed))
        if len(order) == 17:
            raise LostError

    with pytest.raises(LostError):
        run_study(STUDY, Launch(tmp_path), Trainings(stop).connect)
    assert looks_told(capsys) == [
        f"Look 1 of 3 (3 seeds): '{CLAIMS[0]}' shown (p = 0.00028); 2 claims go on."
    ]
    assert run_study(STUDY, Launch(tmp_path), Trainings().connect) == 0
    assert looks_told(capsys) == [
        "Look 2 of 3 (4 seeds): 2 claims go on.",
        f"Look 3 of 3 (5 seeds): '{CLAIMS[1]}' shown (p = 0.014); '{CLAIMS[2]}' not decided "
        "(p = 1); no claim goes on.",
    ]
    assert tables(tmp_path) == whole
    # Nothing is left to run, and nothing is new.
    assert run_study(STUDY, Launch(tmp_path), connect=None) == 0
    assert looks_told(capsys) == []


def test_results_beyond_a_look_are_not_used(tmp_path, whole):
    """Whoever put them there: another cap, another study, a driver that worked ahead."""
    situation = survey(STUDY, tmp_path)
    beyond = [(7, 3), (7, 4)]
    for place in beyond:
        store(situation, place, 0.99)
    # This one is needed, at the last look.
    early = (10, 4)
    store(situation, early, value(*early))
    trainings = Trainings()
    assert run_study(STUDY, Launch(tmp_path), trainings.connect) == 0
    assert set(trainings.trained) == needed() - {early}
    assert tables(tmp_path) == whole


def test_two_drivers_of_one_study_share_its_looks(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(driver, "LivePage", NoPage)
    monkeypatch.setattr(driver, "_POLL_S", 0.02)
    both = threading.Barrier(2)

    def together(block, seed):
        # Neither is alone in the first look.
        if seed == 0:
            both.wait(60)

    backends, codes = [Trainings(together), Trainings(together)], []

    def run(backend):
        codes.append(run_study(STUDY, Launch(tmp_path), backend.connect))

    threads = [threading.Thread(target=run, args=[backend]) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    first, second = (set(backend.trained) for backend in backends)
    assert min(len(first), len(second)) >= 2
    assert not first & second
    assert first | second == needed()
    assert tables(tmp_path) == whole


@pytest.mark.parametrize("worth", [None, 0.3])
def test_a_training_that_diverges_is_a_value_or_its_claim_is_not_tested(tmp_path, capsys, worth):
    def change(block, seed):
        return {} if (block, seed) == (8, 2) else None

    study = replace(STUDY, seeds=replace(STUDY.seeds, diverged_value=worth))
    trainings = Trainings(change)
    status = run_study(study, Launch(tmp_path), trainings.connect)
    if worth is None:
        # It has no result, and its row gets no more seeds.
        assert status == 4
        assert set(trainings.trained) == needed() - {(8, 3), (8, 4)}
        assert f"'{CLAIMS[1]}' not tested" in looks_told(capsys)[0]
    else:
        assert status == 0
        assert set(trainings.trained) == needed()
        assert not any("not tested" in line for line in looks_told(capsys))
    (state,) = [
        claim for claim in survey(study, tmp_path).looks().claims if claim.claim.name == CLAIMS[1]
    ]
    if worth is not None:
        # Seeds 0, 1, 3, 4 as declared, and 0.3 for seed 2, where the base has 0.48.
        test = state.comparisons[0].test
        assert test.n == 5
        assert test.difference == pytest.approx((-0.03 - 0.01 - 0.18 - 0.02 - 0.02) / 5)


def test_a_training_that_fails_holds_its_look_and_the_same_command_goes_on(tmp_path, whole, capsys):
    def fail(block, seed):
        if (block, seed) == (9, 3):
            raise MemoryError("none left")

    trainings = Trainings(fail)
    assert run_study(STUDY, Launch(tmp_path), trainings.connect) == 4
    assert set(trainings.trained) == {
        place for place in needed() if place[1] < 4 or place[1] in AGAIN
    } - {(9, 3)}
    out = capsys.readouterr().out
    assert "#10, seed 3 failed once: MemoryError: none left" in out
    again = Trainings()
    assert run_study(STUDY, Launch(tmp_path), again.connect) == 0
    assert again.trained[0] == (9, 3)
    assert set(trainings.trained) | set(again.trained) == needed()
    assert tables(tmp_path) == whole


class Workers(Trainings):
    """Trains ``number`` at once, and ends the one that began first."""

    def __init__(self, number, change=lambda block, seed: None):
        super().__init__(change)
        self.number = number

    def run(self, proposer, listener, runs, session, name):
        running = deque()
        while True:
            while len(running) < self.number and (spec := proposer.next()) is not None:
                running.append(spec)
            if running:
                self.run_one(running.popleft(), proposer, listener, runs, session)
            elif proposer.is_done:
                return
            else:
                self.idle()


@pytest.mark.parametrize("number", [1, 6])
def test_free_workers_take_the_seeds_of_the_next_look_if_they_may(tmp_path, whole, capsys, number):
    trainings = Workers(number)
    assert run_study(STUDY, Launch(tmp_path, ahead=True), trainings.connect) == 0
    assert tables(tmp_path) == whole
    assert len(trainings.trained) == len(set(trainings.trained))
    wasted = set(trainings.trained) - needed()
    # One worker is never free while a look is incomplete. Of six, one was free while the last two
    # trainings of the first look and the A/A row ran.
    assert wasted == (set() if number == 1 else {(7, 3)})
    sentence = "1 training beyond the last look was not needed."
    assert (sentence in capsys.readouterr().out) == (number > 1)
    (tmp_path / "without").mkdir()
    assert run_study(STUDY, Launch(tmp_path / "without"), Workers(number).connect) == 0
    assert tables(tmp_path / "without") == whole
    assert "not needed" not in capsys.readouterr().out


def test_work_ahead_is_one_training_for_each_free_worker(tmp_path):
    study = Study(tmp_path, ahead=True)
    assert study.ask(is_idle=False) == set()
    assert study.ask(is_idle=True) == {(7, 3)}
    assert study.ask(is_idle=True) == {(8, 3)}
    # The look ends: what it made needless is not started any more.
    started = set()
    for place in sorted(study.waiting):
        if place[1] < 3:
            started |= study.end(place)
    assert started == {(9, 3), (10, 3)}
    # Nothing follows a training that failed.
    failed = study.waiting.pop((9, 3))
    study.proposer.failed(failed.key)
    assert study.ask(is_idle=True) == set()
    assert study.ask(is_idle=True) == set()
    assert [task.name for task in study.proposer.unfinished() if task.key == failed.key]


def test_a_fixed_list_of_seeds_has_no_looks_and_no_work_ahead(tmp_path, capsys):
    fixed = replace(STUDY, seeds=(0, 1))
    study = Study(tmp_path, fixed, ahead=True)
    assert len(study.waiting) == 10
    assert study.ask(is_idle=True) == set()
    assert study.proposer.news() == []
    assert study.proposer.remarks() == []


def test_a_trial_of_another_driver_counts_when_it_has_ended(tmp_path, monkeypatch):
    """The next look starts although this driver has trained nothing of the present one."""
    monkeypatch.setattr(driver, "LivePage", NoPage)
    monkeypatch.setattr(driver, "_POLL_S", 0.0)
    situation = survey(STUDY, tmp_path)
    first = {(block, seed) for block in DIFFERENCES for seed in range(3)}
    keys = {
        place_of(trial): key
        for trial, key in zip(situation.plan.trials, situation.keys, strict=True)
    }
    with Leases(tmp_path, "another driver") as other:
        held = {keys[place]: place for place in first}
        assert other.acquire([*held]) == set(held)
        trainings = Trainings()

        def idle():
            key, place = held.popitem()
            store(situation, place, value(*place))
            other.release([key])

        trainings.idle = idle
        assert run_study(STUDY, Launch(tmp_path), trainings.connect) == 0
    assert set(trainings.trained) == needed() - first
