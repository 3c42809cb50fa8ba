"""A driver of a search without Ray: what a lost one left goes on, what ended does not run again."""

import csv
import io
import json
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import IntDistribution

from sweeps.core.commands.status import print_status
from sweeps.core.findings.confounders import CHOSEN, find_confounders
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.plan_text import look_ahead, print_plan
from sweeps.core.plan.survey import survey
from sweeps.core.report.search_report import SELECTED, write_search_report
from sweeps.core.run import driver, start
from sweeps.core.run.failures import Failure
from sweeps.core.run.start import run_study
from sweeps.core.run.worker import Spec, run_trial
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.runs import newest_step
from sweeps.core.store.search_record import read_search_record
from sweeps.core.store.study_record import TrialRecord
from toco.train.provenance import own_command

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
import fake_training
from fake_backend import Channel, InProcess, LostError
from fake_search import STUDY
from fake_training import chain, metrics_of


class Tracker:
    """A store that is gone."""

    def __init__(self, *_):
        self.parent = None

    def ensure_parent(self, *_, **__):
        return None


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "orders").mkdir()
    monkeypatch.setenv("FAKE_ORDERS", str(tmp_path / "orders"))
    monkeypatch.setattr(fake_training, "STEP_S", 0.0)
    monkeypatch.setattr(start, "Tracker", Tracker)
    return tmp_path


def drive(storage, study=STUDY, lose=()):
    """Run the search one trial after the other; ``lose`` has the (place in this start, step) to be
    lost at.
    """
    backend = InProcess(lambda spec: dict(lose).get(len(backend.specs) - 1), after_it=True)
    with suppress(LostError):
        assert run_study(study, Launch(storage), backend.connect) == 0
    return survey(study, storage)


@contextmanager
def begun(storage, holder="a test"):
    """A driver of the search that has its lease."""
    situation = survey(STUDY, storage)
    with Leases(storage, holder) as leases:
        situation.claim(leases)
        launch = Launch(storage)
        forecast = look_ahead(situation, launch).forecast
        yield (
            driver.Driver(situation, launch, leases, Tracker(), forecast, is_shown=False),
            leases,
            situation,
        )


def starts(place):
    """(block, step) that every attempt began at."""
    lines = (place / "orders" / "starts").read_text().splitlines()
    return [(int(block), int(step)) for _, block, step, _ in map(str.split, lines)]


def table(situation):
    """What does not depend on when and where it ran."""
    return read_search_record(situation.path).trials


def test_a_search_that_is_lost_again_and_again_ends_as_the_uninterrupted_one(place):
    whole = table(drive(place / "whole"))
    attempts = starts(place)
    (place / "orders" / "starts").unlink()
    assert {trial.state for trial in whole} == {"finished", "stopped"}
    storage = place / "lost"
    # Between rungs, at the rung, after it, and at the end before anything was told.
    for lose in ([(0, 5)], [(0, 10)], [(0, 15)], [(1, 10)], [(1, 20)], [(0, 5)]):
        drive(storage, lose=lose)
    assert table(drive(storage)) == whole
    # Nobody began anew: every attempt after the first is from a checkpoint.
    assert sorted(block for block, step in starts(place) if step == 0) == sorted(
        block for block, _ in attempts
    )
    assert len(starts(place)) > len(attempts)
    assert drive(storage).path == drive(storage).path
    before = len(starts(place))
    drive(storage)
    assert len(starts(place)) == before


def test_full_trials_enter_the_ledger_as_chosen_by_a_search_and_stopped_ones_do_not(place):
    situation = drive(place / "results")
    ledger = Ledger(place / "results")
    trials = table(situation)
    finished = [trial for trial in trials if trial.state == "finished"]
    stopped = [trial for trial in trials if trial.state == "stopped"]
    assert finished
    assert stopped
    for trial in finished:
        entry = ledger.entry(trial.key)
        assert (entry.status, entry.origin.search, entry.origin.study) == (
            "finished",
            True,
            STUDY.name,
        )
        block = trial.values["method.aux_block"]
        assert entry.metrics == metrics_of(chain(STUDY.seed, block, 20))
        assert trial.results == {o.key: entry.metrics[o.key] for o in STUDY.objectives}
        # A table that finds it says so.
        record = TrialRecord(
            trial.key, STUDY.seed, 0, "finished", None, 0, 20, entry, ledger.run_dir(trial.key)
        )
        assert find_confounders((record,), (), "base", (), {})[0] == CHOSEN
    for trial in stopped:
        run_dir = ledger.run_dir(trial.key)
        assert (trial.stopped_at, trial.results, trial.on_front) == (10, {}, False)
        if ledger.entry(trial.key) is None:
            result = json.loads((run_dir / "result.json").read_text())
            assert (result["status"], result["step"]) == ("stopped", 10)
            assert newest_step(run_dir) == 10


def test_a_stopped_trial_was_not_among_the_best_when_it_was_stopped(place):
    trials = table(drive(place / "results"))
    for trial in trials:
        block = trial.values["method.aux_block"]
        if 10 in trial.rungs:
            expected = metrics_of(chain(STUDY.seed, block, 10))
            assert trial.rungs[10] == {o.key: expected[o.key] for o in STUDY.objectives}
    for number, trial in enumerate(trials):
        there = [other.rungs[10]["val/cam_miou"] for other in trials[:number] if 10 in other.rungs]
        if 10 in trial.rungs:
            better = sum(value > trial.rungs[10]["val/cam_miou"] for value in there)
            assert (trial.state == "stopped") is (2 * better >= len(there) + 1)


def test_what_the_ledger_has_is_not_trained(place):
    storage = place / "results"
    first = drive(storage, replace(STUDY, rungs=None))
    (place / "orders" / "starts").rename(place / "orders" / "before")
    # Another search with other rungs: the same first proposals, which are random.
    drive(storage, replace(STUDY, rungs=None, num_random=4, num_trials=3))
    assert not (place / "orders" / "starts").exists()
    assert [trial.state for trial in table(first)] == ["finished"] * 6


def test_other_code_begins_another_journal(place, monkeypatch):
    situation = drive(place / "results")
    other = replace(situation, inputs={**situation.inputs, "train": "other data"})
    assert other.path == situation.path
    assert other.journal != situation.journal


def test_a_diverging_trial_is_a_result_and_its_values_are_not_tried_again(place):
    block = table(drive(place / "probe"))[0].values["method.aux_block"]
    (place / "orders" / f"diverge-{STUDY.seed}-{block}").touch()
    situation = drive(place / "results")
    first = table(situation)[0]
    assert (first.state, first.results) == ("diverged", {})
    assert Ledger(place / "results").entry(first.key).status == "diverged"


def test_a_search_all_of_whose_trials_diverge(place):
    for block in range(12):
        (place / "orders" / f"diverge-{STUDY.seed}-{block}").touch()
    situation = drive(place / "results")
    trials = table(situation)
    assert [trial.state for trial in trials] == ["diverged"] * STUDY.num_trials
    assert {trial.message for trial in trials} == {"diverged"}
    report = write_search_report(situation.path)
    assert report.exit_code == 0
    assert "6 of 6 trials: 6 diverged." in report.text
    assert "<svg" not in report.page.read_text()


SAME = IntDistribution(7, 8)
"""Two values only, so that they are proposed again."""


def test_values_that_are_proposed_again_are_not_trained_again(place):
    study = replace(STUDY, space={"method.aux_block": SAME}, num_trials=8, rungs=None)
    situation = drive(place / "results", study)
    trials = table(situation)
    assert len(trials) == 8
    assert sorted(starts(place)) == [(7, 0), (8, 0)]
    for trial in trials:
        found = metrics_of(chain(STUDY.seed, trial.values["method.aux_block"], 20))
        assert trial.results == {o.key: found[o.key] for o in STUDY.objectives}


def test_values_that_a_rung_has_stopped_are_not_trained_to_the_end_when_proposed_again(place):
    # With this seed block 8 is better at the rung, and comes first.
    study = replace(STUDY, space={"method.aux_block": SAME}, num_trials=8, seed=8)
    trials = table(drive(place / "results", study))
    there = [metrics_of(chain(study.seed, block, 10))["val/cam_miou"] for block in (7, 8)]
    assert there[0] < there[1]
    states = [(trial.values["method.aux_block"], trial.state) for trial in trials]
    assert states[0] == (8, "finished")
    assert set(states) == {(7, "stopped"), (8, "finished")}
    assert states.count((7, "stopped")) > 1
    assert starts(place) == [(8, 0), (7, 0)]


def test_a_damaged_row_of_a_stopped_trial_does_not_end_the_search(place):
    study = replace(STUDY, space={"method.aux_block": SAME}, num_trials=8, seed=8)
    begun = table(drive(place / "results", replace(study, num_trials=4)))
    stopped = [trial.key for trial in begun if trial.state == "stopped"]
    rows = Ledger(place / "results").run_dir(stopped[0]) / "metrics.jsonl"
    first, *others = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join([first.replace(b"step", b"stop"), *others]))
    trials = table(drive(place / "results", study))
    assert [trial.state for trial in trials if trial.key == stopped[0]].count("stopped") > len(
        stopped
    )
    assert starts(place) == [(8, 0), (7, 0)]


def test_a_driver_that_was_suspended_and_replaced_writes_nothing(place):
    with (
        begun(place / "results") as (search, first, situation),
        Leases(place / "results", "the second") as second,
    ):
        spec = search.next()
        # As after its heart-beat has stopped for a minute.
        first.release([situation.lease, spec.key])
        assert second.acquire([situation.lease, spec.key]) == {situation.lease, spec.key}
        journal = situation.journal.read_bytes()
        listener = search._listener
        run_trial(
            spec,
            Channel(spec, search, listener, situation.ledger.run_dir(spec.key), place / "kept"),
        )
        assert search.next() is None
        assert situation.journal.read_bytes() == journal
        assert not situation.ledger.run_dir(spec.key).exists()
        with pytest.raises(
            LostLeaseError, match=r"suspended or cut off, and the second on .* has taken over"
        ):
            listener.check()
        # Nor does it note failures of what is another's.
        listener.lost(spec.key, Failure("lost", "its worker process is gone", "", "w1", "node"))
        assert situation.ledger.failures(spec.key) == []


def test_who_asks_changes_nothing_for_who_runs(place):
    situation = drive(place / "results")
    file = situation.path / "search.json"
    before = file.read_bytes()
    fewer = replace(STUDY, num_trials=2)
    assert print_status(fewer, Launch(place / "results")) == 0
    assert print_plan(fewer, Launch(place / "results")) == 0
    assert file.read_bytes() == before


def test_two_drivers_of_a_search_are_refused(place):
    with (
        begun(place / "results", "somebody"),
        pytest.raises(ValueError, match=r"somebody on .* runs this search now"),
    ):
        run_study(STUDY, Launch(place / "results"), InProcess().connect)


def test_the_report(place, capsys):
    situation = drive(place / "results")
    trials = table(situation)
    report = write_search_report(situation.path)
    assert report.exit_code == 0
    assert [path.name for path in report.files] == ["search.md", "trials.csv", "report.html"]
    page = report.page.read_text()
    for text in (report.text, page, report.note):
        assert SELECTED in " ".join(text.split())
        assert "stopped at rung 10" in text
    assert "<svg" in page
    assert "<script" not in page
    # It loads itself again only while a driver runs the search.
    assert 'http-equiv="refresh"' not in page
    assert (
        'http-equiv="refresh"' in write_search_report(situation.path, running=True).page.read_text()
    )
    # A stopped trial has no result; what it had reached stands in brackets.
    stopped = next(trial for trial in trials if trial.state == "stopped")
    (line,) = (line for line in report.note.splitlines() if line.startswith(f"| {stopped.number} "))
    reached = metrics_of(chain(STUDY.seed, stopped.values["method.aux_block"], 10))
    assert [cell.strip() for cell in line.split("|")[3:5]] == [
        f"({100 * reached[objective.key]:.1f})" for objective in STUDY.objectives
    ]
    assert "Trial 0 has the recipe's own settings." in report.text
    assert "0 to 11, integers" in page
    rows = list(csv.DictReader(io.StringIO((situation.path / "trials.csv").read_text())))
    assert [row["state"] for row in rows] == [trial.state for trial in trials]
    for row, trial in zip(rows, trials, strict=True):
        assert int(row["method.aux_block"]) == trial.values["method.aux_block"]
        assert row["val/cam_miou"] == (
            "" if trial.state == "stopped" else str(trial.results["val/cam_miou"])
        )
    capsys.readouterr()
    assert print_status(STUDY, Launch(place / "results")) == 0
    printed = capsys.readouterr().out
    assert "No driver runs it now." in printed
    assert printed.count("stopped at rung 10") == sum(trial.state == "stopped" for trial in trials)


def test_a_report_of_a_search_that_has_not_begun(place):
    situation = survey(STUDY, place / "results")
    situation.write()
    report = write_search_report(situation.path)
    assert "0 of 6 trials: none begun." in report.text
    assert "0 finished trials are too few" in report.text


def test_a_spec_is_what_an_ablation_would_train(place):
    """So that either finds the other's entry."""
    with begun(place / "results") as (search, _, situation):
        spec = search.next()
    task = situation.task(0, situation.record().trials[0].values)
    dumped = task.config.model_dump(mode="json")
    expected = Spec(
        task.key, "shapes_nano", STUDY.train, dumped, inputs=situation.inputs, command=own_command()
    )
    assert spec == expected


def test_a_trial_that_another_driver_has_ended_is_not_waited_for_and_stopped_ones_are_free(
    place, monkeypatch
):
    """That driver keeps its lease for as long as it runs, and may be waiting for one of ours."""
    monkeypatch.setattr(driver, "_POLL_S", 0.0)
    drive(place / "elsewhere")
    situation = survey(STUDY, place / "here")
    key = situation.task(0, situation.plan.start).key
    backend = InProcess()
    with Leases(place / "here", "a study") as other:
        assert other.acquire([key])
        backend.idle = lambda: situation.ledger.write(Ledger(place / "elsewhere").entry(key))
        assert run_study(STUDY, Launch(place / "here"), backend.connect) == 0
        assert key not in [spec.key for spec in backend.specs]
        assert other.holds(key)
        trials = table(situation)
        stopped = {trial.key for trial in trials if trial.state == "stopped"}
        assert stopped
        assert other.acquire(stopped) == stopped


def test_a_trial_that_fails_is_left_for_the_next_start(place, capsys):
    """Its run folder was published before: what is handed out after the failure is no business of
    this driver's.
    """
    situation = survey(STUDY, place / "results")
    block = situation.plan.start["method.aux_block"]
    order = place / "orders" / f"refuse-{STUDY.seed}-{block}"
    order.touch()
    study = replace(STUDY, rungs=None, num_trials=2)
    assert run_study(study, Launch(place / "results"), InProcess().connect) == 4
    assert (
        "trial 0 failed once: ValueError: image7.png cannot be decoded." in capsys.readouterr().out
    )
    order.unlink()
    assert run_study(study, Launch(place / "results"), InProcess().connect) == 0
    assert starts(place)[-1] == (block, 10)
