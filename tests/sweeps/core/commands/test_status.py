"""The verbs that run nothing, on a small study as it is recorded."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from sweeps.core.commands import status
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import survey
from sweeps.core.statistics.sequential import boundaries
from sweeps.core.store.leases import Leases
from sweeps.core.store.ledger import Ledger
from tests.sweeps.core.commands.test_diff import STUDY, record
from tests.sweeps.core.records import M, make_study
from toco.tracking import Pages
from toco.train import records

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
import sequential_study

TRIALS = ["#8, seed 0", "#8, seed 1", "#10, seed 0", "#10, seed 1"]


@pytest.fixture
def keys(tmp_path):
    """Keys of the study's trials by name, of which the first one is there."""
    situation = survey(STUDY, tmp_path)
    assert [trial.name for trial in situation.plan.trials] == TRIALS
    first, identity = situation.plan.trials[0], situation.identities[0]
    entry = {
        "key": identity.key,
        "training_key": identity.training_key,
        "identity": identity.parts,
        "config": first.config.model_dump(mode="json"),
        "run": f"runs/{identity.key}",
    }
    Ledger(tmp_path).write(make_study({"#8": (0.5,)}).trials[0].entry.model_copy(update=entry))
    return dict(zip(TRIALS, situation.keys, strict=True))


def test_the_status_tells_what_runs_what_failed_and_what_nobody_runs(tmp_path, keys, capsys):
    ledger = Ledger(tmp_path)
    ledger.add_failure(keys["#8, seed 1"], "MemoryError: none left", "Traceback")
    checkpoint = ledger.run_dir(keys["#10, seed 1"]) / "checkpoints/step_00000005"
    checkpoint.mkdir(parents=True)
    records.write(checkpoint / "state.json", {"step": 5})
    with Leases(tmp_path, "the study other") as leases:
        leases.acquire([keys["#10, seed 0"]])
        assert status.print_status(STUDY, Launch(tmp_path)) == 0
    first, failed, leased, begun, missing = capsys.readouterr().out.splitlines()
    assert first == "Fake trainings: 1 of 4 trials has ended."
    assert failed == "  #8, seed 1: failed once: MemoryError: none left"
    assert leased.startswith("  #10, seed 0: step 0 of 360, the study other on ")
    assert begun == "  #10, seed 1: step 5 of 360, no driver runs it"
    assert missing == "Missing: 1 failed, 1 leased by a running driver, 1 begun."
    ledger.add_failure(keys["#8, seed 1"], "KeyError: 'x'", "Traceback")
    status.print_status(STUDY, Launch(tmp_path))
    out = capsys.readouterr().out
    assert "  #8, seed 1: failed 2 times, at last: KeyError: 'x'" in out
    # Its driver is gone.
    assert "Missing: 1 failed, 1 not begun, 1 begun." in out


def test_a_whole_study_misses_nothing(tmp_path, capsys):
    record(tmp_path, STUDY, 0.5)
    status.print_status(STUDY, Launch(tmp_path))
    assert capsys.readouterr().out == "Fake trainings: 4 of 4 trials have ended.\n"


def test_the_status_of_a_sequential_study_says_what_its_looks_have_decided(tmp_path, capsys):
    def status_lines():
        assert status.print_status(sequential_study.STUDY, Launch(tmp_path)) == 0
        return capsys.readouterr().out.splitlines()

    situation = survey(sequential_study.STUDY, tmp_path)
    first, *_, missing, advice = status_lines()
    assert advice == "No driver runs: run the study, or submit it."
    assert first == "Fake looks: 0 of 15 trials have ended, of those needed so far; at most 23."
    assert missing == "Missing: 15 not begun."
    for place in [(block, seed) for block in (7, 8, 9, 10) for seed in range(3)] + [(9, 5)]:
        sequential_study.store(situation, place, sequential_study.value(*place))
    # Beyond the looks of #8, so it does not count; for #9 it counts.
    for place in ((7, 3), (8, 3)):
        sequential_study.store(situation, place, 0.5)
    # 0.000033 / 0.36 is its level at the first look, and three claims are tested. The other two
    # share 5 %, of which the second look may spend (4/5)^2 - (3/5)^2 = 28 %.
    first, second, third = sequential_study.CLAIMS
    boundary = boundaries((3, 4, 5), 2.0).boundary(1, 0.025)
    assert 0.28 * 0.025 < boundary < 0.64 * 0.025
    needs = f"; it needs p <= {boundary:.2g} in a t test with 4 seeds"
    assert status_lines() == [
        "Fake looks: 14 of 18 trials have ended, of those needed so far; at most 23.",
        "Look 1 of 3 (3 seeds) is over; the next one is after 4 seeds.",
        f"  {first}: shown after 3 seeds, p = 0.00028 after correction",
        f"  {second}: open after 3 seeds, p = 0.41 after correction{needs}",
        f"  {third}: open after 3 seeds, p = 1 after correction{needs}",
        "Seeds with a result, of those needed so far:",
        "  #8: 3 of 3, at most 5",
        "  #9: 4 of 4, at most 5",
        "  #10: 3 of 4, at most 5",
        "  #11: 3 of 4, at most 5",
        "  base again (A/A): 1 of 3, at most 3",
        "Missing: 4 not begun.",
        "No driver runs: run the study, or submit it.",
    ]


def test_the_status_says_why_a_trial_is_missing_although_its_settings_are_there(
    tmp_path, keys, capsys
):
    ledger = Ledger(tmp_path)
    situation = survey(STUDY, tmp_path)
    identity = situation.identities[1]
    parts = json.loads(json.dumps(identity.parts))
    parts["code"]["toco.losses.ptc"] = "9" * 16
    other = {"key": "a" * 20, "identity": parts, "run": "runs/aa"}
    ledger.write(ledger.entry(keys["#8, seed 0"]).model_copy(update=other))
    status.print_status(STUDY, Launch(tmp_path))
    assert "1 because of code changed: toco.losses.ptc" in capsys.readouterr().out


def test_the_report_is_of_the_study_as_it_stands(tmp_path, keys, capsys):
    assert status.print_report(STUDY, Launch(tmp_path), None) == 4
    out = capsys.readouterr().out
    assert "3 of 4 trials have no result" in out
    page = tmp_path / survey(STUDY, tmp_path).plan.folder_name / "report.html"
    assert out.rstrip().endswith(f"Report: {page}")
    assert "1 of 4" in page.read_text()
    assert (page.parent / "table.csv").read_text().count("\n") == 3


def test_a_whole_studys_report_ends_with_0_and_makes_the_bundle(tmp_path, capsys):
    record(tmp_path, STUDY, 0.5)
    target = tmp_path / "for/review.zip"
    assert status.print_report(STUDY, Launch(tmp_path), target) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"Bundle: {target}")
    with zipfile.ZipFile(target) as archive:
        assert "fake/table.csv" in archive.namelist()


def test_a_study_of_which_nothing_is_there_is_reported_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="No trial of fake has ended yet"):
        assert status.print_report(STUDY, Launch(tmp_path), None) == 4


class _Tracker:
    """Takes everything, or with ``gone`` nothing."""

    gone = False

    def __init__(self, uri, experiment):
        self.uri, self.experiment = uri, experiment
        type(self).last = self
        self.tracked, self.finished = [], None

    def ensure_parent(self, study_id, run_name, tags=None, maps=(), *, last=False):
        return None if self.gone else "parent"

    def pages(self):
        return Pages("http://127.0.0.1:5000", "1")

    def track(self, run_dir, *, parent_run_id=None, run_name=None, tags=None, last=False):
        self.tracked.append((run_dir.name, run_name))
        return f"run-{run_dir.name}"

    def describe_parent(self, *_, **__):
        return True

    def finish_parent(self, parent_run_id, files=(), status="FINISHED", note=None):
        self.finished = ([path.name for path in files], status, note)
        return True


@pytest.mark.parametrize("whole", [True, False])
def test_sync_fills_mlflow_from_the_ledger(tmp_path, keys, capsys, monkeypatch, whole):
    if whole:
        record(tmp_path, STUDY, 0.5)
    monkeypatch.setattr(status, "Tracker", _Tracker)
    there = list(keys.values()) if whole else [keys["#8, seed 0"]]
    for key in there:
        Ledger(tmp_path).run_dir(key).mkdir(parents=True)
    assert status.sync(STUDY, Launch(tmp_path)) == 0
    said, page, start = capsys.readouterr().out.splitlines()
    assert said == f"MLflow has {len(there)} trials of fake.".replace("1 trials", "1 trial")
    assert page.startswith(
        "MLflow: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    )
    assert start == f"To see that page: python -m toco mlflow {tmp_path / 'mlflow.db'}"
    # The page that was sent knows where MLflow shows its trials.
    report = (tmp_path / survey(STUDY, tmp_path).plan.folder_name / "report.html").read_text()
    assert all(
        f"/#/experiments/1/runs/run-{key}?workflowType=machine_learning" in report for key in there
    )
    tracker = _Tracker.last
    assert (tracker.experiment, tracker.uri) == ("fake", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert {key for key, _ in tracker.tracked} == set(there)
    files, state, note = tracker.finished
    assert files == ["table.md", "table.csv", "table.tex", "report.html"]
    assert state == ("FINISHED" if whole else "KILLED")
    assert note.startswith("# Fake trainings")


def test_sync_says_when_the_store_is_gone(tmp_path, keys, capsys, monkeypatch):
    monkeypatch.setattr(_Tracker, "gone", True)
    monkeypatch.setattr(status, "Tracker", _Tracker)
    assert status.sync(STUDY, Launch(tmp_path, sync_command="python -m sweeps sync fake")) == 1
    assert capsys.readouterr().out == (
        f"MLflow at sqlite:///{tmp_path}/mlflow.db does not have everything; the run folders do. "
        "To fill it: python -m sweeps sync fake\n"
    )
    assert M in (tmp_path / survey(STUDY, tmp_path).plan.folder_name / "table.csv").read_text()
