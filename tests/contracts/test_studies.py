"""Every study is a value that can be counted and resolved before anything runs."""

import importlib

import pytest

from sweeps.__main__ import studies
from toco.config import digest


@pytest.fixture(params=sorted(studies()))
def study(request):
    return studies()[request.param]


def test_a_study_resolves_to_the_trainings_it_counts(study):
    plan = study.resolve()
    assert len(plan.trials) == study.num_trials == len(plan.cells) * len(study.seeds)
    assert len({trial.name for trial in plan.trials}) == study.num_trials
    assert all(trial.digest == digest(trial.config) for trial in plan.trials)


def test_a_study_says_command_hardware_and_what_to_expect(study):
    text = importlib.import_module(f"sweeps.{study.name}").__doc__
    assert f"python sweeps/{study.name}.py" in text
    assert "minute" in text or "hour" in text
