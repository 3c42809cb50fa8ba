"""A sequential study with a budget of hours: which looks start, what a stop says, and that another
budget goes on.
"""

import sys
from pathlib import Path

import pytest

from sweeps.core.commands.status import print_status
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study
from sweeps.core.findings.looks import needed_trials
from sweeps.core.plan.budget import Budget
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import survey
from sweeps.core.run.start import run_study
from sweeps.core.run.study_proposer import StudyProposer
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.study_record import read_study_record
from toco.train import records
from toco.train.records import make_row, rows_text
from toco.train.run_config import RunConfig

sys.path.insert(0, str(Path(__file__).parents[2]))
from fake_backend import FakeBackend
from fake_store import FakeStore

M = "val/cam_miou"
# Row minus base at the seeds 0 to 9: far from significant at every look, but never futile.
UNDECIDED = (0.02, -0.01, 0.015, 0.03, -0.02, 0.02, 0.01, 0.0, 0.03, -0.01)


class Hours(FakeBackend):
    """Trainings that take an hour each."""

    def __init__(self):
        super().__init__(self.make)
        self.seeds = []

    def make(self, spec, folder):
        config = RunConfig.model_validate(spec.config)
        self.seeds.append(config.seed)
        value = 0.5 + (UNDECIDED[config.seed] if config.method.aux_block == 7 else 0.0)
        result = {"status": "finished", "step": 2, "digest": "0" * 16, "metrics": {M: value}}
        records.write(
            folder / "config.json",
            {"digest": "0" * 16, "recipe": spec.recipe, "config": config.model_dump(mode="json")},
        )
        started = "2026-01-01T00:00:00+00:00"
        records.write(
            folder / "provenance.json", {"commit": None, "started": started, "device": "CPU x86_64"}
        )
        (folder / "metrics.jsonl").write_text(rows_text([make_row(2, "val", 0.0, {M: value})]))
        records.write(folder / "result.json", {**result, "wall_time_s": 3600.0})


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.core.run.start.Tracker", FakeStore)
    monkeypatch.setattr("sweeps.core.plan.plan_text.probe", lambda *_, **__: ())
    # Networks are built to check the sizes, which takes seconds.
    monkeypatch.setattr("sweeps.core.plan.survey.check_sizes", lambda *_: None)
    monkeypatch.setattr("sweeps.core.run.driver.LivePage", lambda *_: None)
    for module in ("driver", "start"):
        monkeypatch.setattr(f"sweeps.core.run.{module}.write_report_of", Report)
        monkeypatch.setattr(f"sweeps.core.run.{module}.remember_report", lambda *_: None)
    changes = {
        "data.num_train": 1,
        "data.num_val": 1,
        "num_steps": 2,
        "evaluate_every": 2,
        "optim.warmup_steps": 0,
    }
    return Study(
        "costly",
        "A costly study",
        "shapes_nano",
        OneFactor((Factor("method.aux_block", (7, 9), 9),)),
        Sequential(looks=(2, 4, 6), futility=None),
        (Metric(M, "M"),),
        changes,
        purpose="direction",
        repeat_base=False,
    )


class Report:
    """Stands for the written report, which takes seconds; its status is that of the record."""

    text, note, page, files = "the report", "", "report.html", ()

    def __init__(self, situation, **_):
        self.study = needed_trials(read_study_record(situation.path))
        self.exit_code = 4 if any(trial.entry is None for trial in self.study.trials) else 0


def run(study, tmp_path, capsys, hours, **fields):
    backend = Hours()
    launch = Launch(tmp_path, budget_hours=hours, **fields)
    assert run_study(study, launch, backend.connect) == 0
    return sorted(backend.seeds), capsys.readouterr().out


def test_no_look_starts_that_exceeds_the_budget_and_a_larger_one_goes_on(study, tmp_path, capsys):
    # A look is two rows times two seeds: 4 hours on one core.
    seeds, text = run(study, tmp_path, capsys, 11.9)
    assert seeds == [0, 0, 1, 1, 2, 2, 3, 3]
    sentence = (
        "The study is stopped by the budget of 11.9 hours after look 2: 8.00 hours are used, and "
        "the next look takes about 4.00 more."
    )
    assert sentence in text
    assert print_status(study, Launch(tmp_path)) == 0
    assert sentence in capsys.readouterr().out
    situation = survey(study, tmp_path)
    stop = read_study_record(situation.path).stopped
    assert (stop.look, stop.used, stop.needed) == (2, 8.0, 4.0)
    assert situation.looks().num_done == 2
    # The same again: it says the same and runs nothing.
    seeds, text = run(study, tmp_path, capsys, 11.9)
    assert seeds == []
    assert sentence in text
    # Just enough for the last look; nothing is stopped any more.
    seeds, text = run(study, tmp_path, capsys, 12.0)
    assert seeds == [4, 4, 5, 5]
    assert "stopped by the budget" not in text
    situation = survey(study, tmp_path)
    assert read_study_record(situation.path).stopped is None
    (claim,) = situation.looks().claims
    assert (claim.outcome, claim.n) == ("undecided", 6)
    # A study that was never stopped has the same name and the same decisions.
    whole = tmp_path / "whole"
    run(study, whole, capsys, None)
    assert survey(study, whole).path.name == situation.path.name
    assert survey(study, whole).looks() == situation.looks()


def test_hours_are_those_of_the_resources_of_a_trial(study, tmp_path, capsys):
    # Four cores for an hour are four hours: the second look would end at 32.
    seeds, text = run(study, tmp_path, capsys, 31.0, cpus_per_trial=4.0)
    assert seeds == [0, 0, 1, 1]
    assert "after look 1: 16.00 hours are used, and the next look takes about 16.00 more" in text
    situation = survey(study, tmp_path)

    def asked(hours, *, is_idle):
        launch = Launch(tmp_path, budget_hours=hours, cpus_per_trial=4.0)
        budget = Budget.of(launch, Forecast(0, 0, 0, 1))
        proposer = StudyProposer(situation, ahead=True, budget=budget)
        return [len(proposer.propose(is_idle=free)) for free in (False, is_idle)], proposer.stop

    # The next look starts within the budget only, and the one after it ahead of time as well, a
    # training for each free worker.
    assert asked(48.0, is_idle=True) == ([4, 1], None)
    assert asked(47.9, is_idle=True) == ([4, 0], None)
    assert asked(48.0, is_idle=False) == ([4, 0], None)
    counts, stop = asked(31.9, is_idle=True)
    assert (counts, stop.look) == ([0, 0], 1)


def test_a_budget_below_the_first_look_is_refused(study, tmp_path, monkeypatch):
    forecast = Forecast(4, 0, 0, 2, cpu_hours=4.0, gpu_hours=0.0)
    situation = survey(study, tmp_path)
    assert Budget(4.0, Launch(tmp_path), forecast).refusal(situation) is None
    refusal = Budget(3.9, Launch(tmp_path), forecast).refusal(situation)
    assert refusal == (
        "The trials up to the first look take about 4.00 hours, and the budget is 3.9 hours. "
        "Give a larger --budget-hours."
    )
    monkeypatch.setattr("sweeps.core.plan.plan_text.forecast", lambda *_, **__: forecast)
    with pytest.raises(ValueError, match="larger --budget-hours"):
        run_study(study, Launch(tmp_path, budget_hours=3.9), Hours().connect)
