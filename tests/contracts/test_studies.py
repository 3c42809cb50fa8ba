"""Every study is a value that can be resolved before anything runs, from every recipe, and says
what to expect.
"""

import dataclasses
import importlib

import pytest

from sweeps.__main__ import studies
from sweeps.core.design.designs import Design
from sweeps.core.design.study import Study
from toco.config import digest
from toco.registry import available, load

NAMES = sorted(name for name, study in studies().items() if isinstance(study, Study))


def method_of(recipe):
    return load("toco.recipes", recipe).recipe().method.name


PAIRS = [(name, recipe) for name in NAMES for recipe in available("toco.recipes")]
OF_ONE_METHOD = [
    pair for pair in PAIRS if method_of(pair[1]) == method_of(studies()[pair[0]].recipe)
]


def adapted(name, recipe):
    """The study as ``--recipe`` makes it."""
    module = importlib.import_module(f"sweeps.{name}")
    study = dataclasses.replace(module.STUDY, recipe=recipe)
    return module.for_recipe(study) if hasattr(module, "for_recipe") else study


@pytest.mark.parametrize(("name", "recipe"), OF_ONE_METHOD)
def test_a_study_resolves_from_every_recipe_of_its_method(name, recipe):
    study = adapted(name, recipe)
    assert study.name == name
    assert isinstance(study.design, Design)
    plan = study.resolve()
    assert {trial.config.data.name for trial in plan.trials} == {study.base().data.name}
    rows = len(plan.cells) - study.repeat_base
    assert len(plan.trials) == rows * len(study.all_seeds) + (
        len(study.seeds_again) if study.repeat_base else 0
    )
    assert (
        len({trial.name for trial in plan.trials})
        == len({trial.digest for trial in plan.trials})
        == len(plan.trials)
    )
    assert all(trial.digest == digest(trial.config) for trial in plan.trials)


@pytest.mark.parametrize(("name", "recipe"), sorted(set(PAIRS) - set(OF_ONE_METHOD)))
def test_a_recipe_of_another_method_has_the_settings_or_is_refused_in_a_sentence(name, recipe):
    try:
        plan = adapted(name, recipe).resolve()
    except ValueError as error:
        message = str(error)
    else:
        assert {trial.config.method.name for trial in plan.trials} >= {method_of(recipe)}
        return
    assert message.endswith((".", "?"))
    assert name in message or recipe in message or "method" in message


@pytest.mark.parametrize("name", NAMES)
def test_the_study_in_the_file_is_that_of_its_own_recipe(name):
    study = studies()[name]
    assert adapted(name, study.recipe) == study


@pytest.mark.parametrize("name", NAMES)
def test_what_a_published_claim_compares_is_declared(name):
    plan = studies()[name].resolve()
    declared = set(plan.tests.places)
    for index, block in enumerate(plan.blocks):
        number = {
            row.paper_row: n
            for n, row in enumerate(plan.rows)
            if row.block == index and row.paper_row
        }
        for claim in block.paper.claims if block.paper else ():
            for label in claim.than:
                better, worse = number[claim.better], number[label]
                row = worse if plan.rows[worse].versus == better else better
                assert {row, plan.rows[row].versus} == {better, worse}
                assert (row, claim.metric) in declared


@pytest.mark.parametrize("name", NAMES)
def test_a_study_says_command_hardware_and_what_to_expect(name):
    text = importlib.import_module(f"sweeps.{name}").__doc__
    assert f"python -m sweeps run {name}\n" in text
    assert "core" in text
    assert "minute" in text or "hour" in text
    assert "Expected" in text
