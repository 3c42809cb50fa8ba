"""A driver of a search without Ray: what a lost one left goes on, what ended does not run again."""

import csv
import io
import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import IntDistribution

from sweeps.core.findings.confounders import CHOSEN, daggers
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.search_survey import survey_search
from sweeps.core.report.search_report import SELECTED, write_search_report
from sweeps.core.run.failures import Failure
from sweeps.core.run.search_driver import SearchDriver
from sweeps.core.run.search_launch import print_search_plan, print_search_status, run_search_study
from sweeps.core.run.worker import Spec, run_trial
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.runs import newest_step
from sweeps.core.store.search_record import read_search_record
from sweeps.core.store.study_record import TrialRecord
from toco.train.provenance import own_command

sys.path.insert(0, str(Path(__file__).parents[1]))
import fake_training
from fake_search import STUDY
from fake_training import chain, metrics_of


class Lost(BaseException):
    """The process is gone; no code of the driver may catch it."""


class Stopped(BaseException):
    """Ray ends the worker of a trial that is stopped."""


class Channel:
    def __init__(self, driver, key, run_dir, lost_at):
        self.driver, self.key, self.run_dir, self.lost_at = driver, key, run_dir, lost_at

    @contextmanager
    def restored(self):
        yield self.run_dir if newest_step(self.run_dir) >= 0 else None

    def report(self, row, snapshot):
        # In Ray's order: the decision comes before the snapshot is kept.
        goes_on = self.driver.goes_on(self.key, row)
        self.driver.snapshot(self.key, snapshot)
        if self.lost_at is not None and row.get("step") == self.lost_at:
            raise Lost
        if not goes_on:
            raise Stopped

    def begin(self):
        pass

    def fail(self, error):
        raise AssertionError("no fake training fails") from error


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "orders").mkdir()
    monkeypatch.setenv("FAKE_ORDERS", str(tmp_path / "orders"))
    monkeypatch.setattr(fake_training, "STEP_S", 0.0)
    return tmp_path


def drive(storage, study=STUDY, lose=()):
    """Run the search one trial after the other; ``lose`` has the (place in this start, step) to be lost at."""
    situation = survey_search(study, storage)
    situation.write()
    with Leases(storage, "a test") as leases:
        assert leases.acquire([situation.lease])
        driver = SearchDriver(situation, Launch(storage), leases)
        if driver.recover():
            number = 0
            while not driver.is_done:
                spec = driver.next()
                if spec is None:
                    continue
                lost_at = dict(lose).get(number)
                number += 1
                try:
                    run_trial(spec, Channel(driver, spec.key, situation.ledger.run_dir(spec.key), lost_at))
                except Stopped:
                    pass
                except Lost:
                    return situation
                driver.ended(spec.key)
    return situation


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
    assert sorted(block for block, step in starts(place) if step == 0) == sorted(block for block, _ in attempts)
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
        assert (entry.status, entry.origin.search, entry.origin.study) == ("finished", True, STUDY.name)
        block = trial.values["method.aux_block"]
        assert entry.metrics == metrics_of(chain(STUDY.seed, block, 20))
        assert trial.results == {o.key: entry.metrics[o.key] for o in STUDY.objectives}
        # A table that finds it says so.
        record = TrialRecord(trial.key, STUDY.seed, 0, "finished", None, 0, 20, entry, ledger.run_dir(trial.key))
        assert daggers((record,), None, "base", (), {})[0] == CHOSEN
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
    assert report.is_complete
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
    assert [trial.state for trial in trials if trial.key == stopped[0]].count("stopped") > len(stopped)
    assert starts(place) == [(8, 0), (7, 0)]


def test_a_driver_that_was_suspended_and_replaced_writes_nothing(place):
    situation = survey_search(STUDY, place / "results")
    situation.write()
    with Leases(place / "results", "the first") as first, Leases(place / "results", "the second") as second:
        first.acquire([situation.lease])
        driver = SearchDriver(situation, Launch(place / "results"), first)
        assert driver.recover()
        spec = driver.next()
        # As after its heart-beat has stopped for a minute.
        first.release([situation.lease, spec.key])
        assert second.acquire([situation.lease, spec.key]) == {situation.lease, spec.key}
        journal = situation.journal.read_bytes()
        run_trial(spec, Channel(driver, spec.key, situation.ledger.run_dir(spec.key), None))
        assert driver.next() is None
        assert driver.is_done
        assert situation.journal.read_bytes() == journal
        assert not situation.ledger.run_dir(spec.key).exists()
        with pytest.raises(LostLeaseError, match=r"suspended or cut off, and the second on .* has taken over"):
            driver._check_lease()
        # Nor does it note failures of what is another's.
        driver.lost(spec.key, Failure("lost", "its worker process is gone", "", "w1", "node"))
        assert situation.ledger.failures(spec.key) == []


def test_who_asks_changes_nothing_for_who_runs(place):
    situation = drive(place / "results")
    file = situation.path / "search.json"
    before = file.read_bytes()
    fewer = replace(STUDY, num_trials=2)
    assert print_search_status(fewer, Launch(place / "results")) == 0
    assert print_search_plan(fewer, Launch(place / "results")) == 0
    assert file.read_bytes() == before


def test_two_drivers_of_a_search_are_refused(place):
    situation = survey_search(STUDY, place / "results")
    with Leases(place / "results", "somebody") as leases:
        leases.acquire([situation.lease])
        with pytest.raises(ValueError, match=r"somebody on .* runs this search now"):
            run_search_study(STUDY, Launch(place / "results"))


def test_the_report(place, capsys):
    situation = drive(place / "results")
    trials = table(situation)
    report = write_search_report(situation.path)
    assert report.is_complete
    assert [path.name for path in report.files] == ["search.md", "trials.csv", "report.html"]
    page = report.page.read_text()
    for text in (report.text, page, report.note):
        assert SELECTED in " ".join(text.split())
        assert "stopped at rung 10" in text
    assert "<svg" in page
    assert "<script" not in page
    # It loads itself again only while a driver runs the search.
    assert 'http-equiv="refresh"' not in page
    assert 'http-equiv="refresh"' in write_search_report(situation.path, running=True).page.read_text()
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
        assert row["val/cam_miou"] == ("" if trial.state == "stopped" else str(trial.results["val/cam_miou"]))
    assert print_search_status(STUDY, Launch(place / "results")) == 0
    printed = capsys.readouterr().out
    assert "Nobody runs it now." in printed
    assert printed.count("stopped at rung 10") == sum(trial.state == "stopped" for trial in trials)


def test_a_report_of_a_search_that_has_not_begun(place):
    situation = survey_search(STUDY, place / "results")
    situation.write()
    report = write_search_report(situation.path)
    assert not report.is_complete
    assert "0 of 6 trials: none begun." in report.text
    assert "Nothing can be said from 0 finished trials" in report.text


def test_a_spec_is_what_an_ablation_would_train(place):
    """So that either finds the other's entry."""
    situation = survey_search(STUDY, place / "results")
    with Leases(place / "results", "a test") as leases:
        assert leases.acquire([situation.lease])
        driver = SearchDriver(situation, Launch(place / "results"), leases)
        assert driver.recover()
        spec = driver.next()
    values = read_values(situation)
    config, identity = situation.proposal(values)
    dumped = config.model_dump(mode="json")
    expected = Spec(identity.key, "shapes_nano", STUDY.train, dumped, inputs=situation.inputs, command=own_command())
    assert spec == expected


def read_values(situation):
    situation.write()
    return read_search_record(situation.path).trials[0].values


def test_a_trial_that_another_driver_has_ended_is_not_waited_for_and_stopped_ones_are_free(place, monkeypatch):
    """That driver keeps its lease for as long as it runs, and may be waiting for one of ours."""
    monkeypatch.setattr("sweeps.core.run.search_driver._WAIT_S", 0.0)
    drive(place / "elsewhere")
    situation = survey_search(STUDY, place / "here")
    situation.write()
    key = situation.proposal(situation.plan.start)[1].key
    stopped, waited = [], 0
    with Leases(place / "here", "a study") as other, Leases(place / "here", "a search") as leases:
        assert other.acquire([key])
        assert leases.acquire([situation.lease])
        driver = SearchDriver(situation, Launch(place / "here"), leases)
        driver.recover()
        while not driver.is_done and waited < 50:
            spec = driver.next()
            if spec is None:
                waited += 1
                if waited == 2:
                    situation.ledger.write(Ledger(place / "elsewhere").entry(key))
                continue
            assert spec.key != key
            try:
                run_trial(spec, Channel(driver, spec.key, situation.ledger.run_dir(spec.key), None))
            except Stopped:
                stopped.append(spec.key)
            driver.ended(spec.key)
        assert driver.is_done
        assert other.holds(key)
        assert stopped
        assert other.acquire(stopped) == set(stopped)
