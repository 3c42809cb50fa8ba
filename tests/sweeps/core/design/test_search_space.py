"""A search is checked before anything runs; its rungs and its halving are
those worked out by hand.
"""

import dataclasses
import itertools
import random

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sweeps.core.design.search_space import (
    Objective,
    Rungs,
    SearchStudy,
    is_among_best,
    terms_joined,
)
from sweeps.core.design.study import Study
from sweeps.core.store.search_record import search_file
from sweeps.search import STUDY, for_recipe
from toco.config import flatten, replace
from toco.recipes.shapes_nano import recipe
from toco.registry import available, load

CAM, SEG = Objective("val/cam_miou", "M"), Objective("val/seg_miou", "seg")
COST = Objective("step_time_s", "cost", higher_is_better=False)


def search(**fields):
    space = {"method.temperature": FloatDistribution(0.1, 1.0)}
    return SearchStudy(
        **{"name": "s", "title": "S", "recipe": "shapes_nano", "space": space, "num_trials": 4}
        | fields
    )


def nano(num_steps, every, segmentation=80, energy=80, weight=0.05):
    paths = {
        "num_steps": num_steps,
        "evaluate_every": every,
        "method.segmentation.start_step": segmentation,
    }
    return replace(
        recipe(),
        paths
        | {
            "method.energy.start_step": energy,
            "method.energy.weight": weight,
            "method.ptc.start_step": 0,
            "method.ctc.start_step": 0,
        },
    )


@pytest.mark.parametrize(
    ("config", "rungs", "expected"),
    [
        # The segmentation loss acts from step 80 on: for 20, 40, 80 steps at 100, 120 and 160,
        # which is the end.
        (nano(160, 20), Rungs(), (100, 120)),
        (nano(161, 20), Rungs(), (100, 120, 160)),
        (nano(1000, 20), Rungs(reduction=3), (100, 140, 260, 620)),
        # It joins between two evaluations: at 100 it has acted for 15 steps only, at 120 for 35.
        (nano(160, 20, segmentation=85), Rungs(), (120, 140)),
        # The later of the two terms counts, unless it has no weight.
        (nano(400, 40, segmentation=80, energy=160), Rungs(), (200, 240, 320)),
        (nano(400, 40, segmentation=80, energy=160, weight=0.0), Rungs(), (120, 160, 240)),
        (nano(160, 80), Rungs(), ()),
        (nano(160, 20), Rungs(first=120), (120,)),
        (nano(400, 20, segmentation=0, energy=0), Rungs(), (20, 40, 80, 160, 320)),
    ],
)
def test_rungs(config, rungs, expected):
    steps = rungs.steps(config, terms_joined(config))
    assert steps == expected
    for step in steps:
        assert step % config.evaluate_every == 0
        assert step - terms_joined(config) >= config.evaluate_every


@pytest.mark.parametrize("first", [180, 210, 360])
def test_a_rung_before_the_segmentation_loss_has_acted_is_refused(first):
    with pytest.raises(ValueError, match=f"first rung is after step {first}.*from step 200 on"):
        search(
            objectives=(CAM, SEG), rungs=Rungs(first=first), changes={"evaluate_every": 20}
        ).resolve()


def test_a_search_over_when_the_loss_joins_waits_for_the_latest():
    space = {"method.segmentation.start_step": IntDistribution(40, 220)}
    plan = search(space=space, objectives=(CAM, SEG), changes={"evaluate_every": 10}).resolve()
    assert plan.rungs == (230, 240, 260, 300)


@pytest.mark.parametrize(
    ("point", "others", "reduction", "expected"),
    [
        ([1.0], [], 2, True),
        ([1.0], [[2.0]], 2, False),
        ([2.0], [[1.0]], 2, True),
        # Second of four: one is better, fewer than two.
        ([3.0], [[4.0], [2.0], [1.0]], 2, True),
        ([2.0], [[4.0], [3.0], [1.0]], 2, False),
        ([2.0], [[4.0], [3.0], [1.0]], 4, False),
        # Nobody is better in both.
        ([1.0, 3.0], [[2.0, 2.0], [3.0, 1.0]], 2, True),
        # Two of three are on the front before it.
        ([1.0, 1.0], [[2.0, 3.0], [3.0, 2.0]], 2, False),
        # Equal ones share their fate.
        ([2.0, 2.0], [[2.0, 2.0], [1.0, 1.0]], 2, True),
        ([float("-inf"), 0.5], [[0.1, 0.6]], 2, False),
    ],
)
def test_who_goes_on(point, others, reduction, expected):
    assert is_among_best(point, others, reduction) is expected


def test_of_one_objective_the_best_part_goes_on():
    rng = random.Random(0)  # noqa: S311 - numbers, not secrets
    for _ in range(200):
        values = rng.sample(range(1000), rng.randint(1, 12))
        reduction = rng.randint(2, 5)
        own, others = values[0], values[1:]
        rank = sum(other > own for other in others)
        assert is_among_best([own], [[other] for other in others], reduction) is (
            rank * reduction < len(values)
        )


def test_rungs_compare_what_evaluations_measure_and_no_cost():
    plan = search(objectives=(CAM, SEG, COST), changes={"evaluate_every": 20}).resolve()
    better, worse = ({"val/cam_miou": x, "val/seg_miou": x, "step_time_s": x} for x in (0.6, 0.5))
    assert plan.goes_on(better, [worse])
    assert not plan.goes_on(worse, [better])
    assert not plan.goes_on({"val/cam_miou": float("nan"), "val/seg_miou": 0.5}, [better])
    never = search(objectives=(CAM, SEG, COST), rungs=None).resolve()
    assert never.rungs == ()
    assert never.goes_on(worse, [better])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": {}}, "varies nothing"),
        ({"space": {"method.temperature": FloatDistribution(0.5, 0.5)}}, "has one value"),
        ({"space": {"num_steps": IntDistribution(10, 20)}}, "cannot be compared"),
        ({"space": {"seed": IntDistribution(0, 9)}}, "cannot be compared"),
        (
            {"space": {"evaluate.background_threshold": FloatDistribution(0.1, 0.9)}},
            "cannot be compared",
        ),
        ({"space": {"data.num_train": IntDistribution(1, 9)}}, "cannot be compared"),
        ({"changes": {"method.temperature": 0.3}}, "is searched, so it cannot be set"),
        ({"objectives": (CAM,)}, "at least two objectives"),
        ({"objectives": (CAM, CAM)}, "occurs twice"),
        (
            {"objectives": (COST, dataclasses.replace(COST, key="wall_time_s"))},
            "Rungs compare evaluations",
        ),
        ({"num_trials": 0}, "at least one trial"),
        ({"seed": -1}, "from 0 to"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        search(**{"objectives": (CAM, SEG)} | fields)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"method.no_such": FloatDistribution(0.1, 0.9)}, "does not have"),
        (
            {"method.local_crop_size_px": CategoricalDistribution([32, 128])},
            "do not go together.*larger than",
        ),
        (
            # Each fits the recipe's own value of the other.
            {
                "method.low_threshold": FloatDistribution(0.1, 0.6),
                "method.high_threshold": FloatDistribution(0.5, 0.8),
            },
            "do not go together.*low_threshold",
        ),
    ],
)
def test_a_space_with_values_that_are_not_valid_is_refused(space, message):
    with pytest.raises(ValueError, match=message):
        search(space=space, objectives=(CAM, SEG)).resolve()


def test_objectives_that_nothing_measures_are_refused():
    with pytest.raises(ValueError, match="neither a metric of the evaluation"):
        Objective("cam_miou", "M")
    with pytest.raises(ValueError, match="at least 2"):
        Rungs(reduction=1)


def test_the_folder_is_that_of_what_results_and_proposals_depend_on():
    one = search(objectives=(CAM, SEG))
    name = one.resolve().folder_name
    assert dataclasses.replace(one, num_trials=99, title="other").resolve().folder_name == name
    for fields in (
        {"seed": 3},
        {"changes": {"optim.lr": 1e-3}},
        {"space": {"method.temperature": FloatDistribution(0.1, 2.0)}},
        {"rungs": None},
        {"objectives": (SEG, CAM)},
        {"num_random": 3},
    ):
        assert (
            dataclasses.replace(one, **{"changes": {"evaluate_every": 20}} | fields)
            .resolve()
            .folder_name
            != name
        )


def test_values_of_an_entry():
    measured = {"val/cam_miou": 0.5, "val/seg_miou": float("nan"), "step_time_s": 0.25}
    assert [objective.value(measured) for objective in (CAM, SEG, COST)] == [0.5, None, 0.25]
    assert COST.value({"step_time_s": None}) is None


def test_a_coarse_objective_tells_apart_what_differs_by_more_than_its_resolution():
    coarse = dataclasses.replace(COST, resolution=0.1)
    rng = random.Random(0)  # noqa: S311 - numbers, not secrets
    for _ in range(100):
        value = 10 ** rng.uniform(-3, 2)
        rounded = coarse.value({"step_time_s": value})
        assert 1.1**-0.5001 <= rounded / value <= 1.1**0.5001
        assert coarse.value({"step_time_s": rounded}) == rounded
        assert coarse.value({"step_time_s": 1.2 * value}) > rounded
    assert coarse.value({"step_time_s": 0.0}) == 0.0
    with pytest.raises(ValueError, match="0 or more, got -1"):
        dataclasses.replace(COST, resolution=-1)


def is_toco(recipe):
    return load("toco.recipes", recipe).recipe().method.name == "toco"


@pytest.mark.parametrize("name", filter(lambda name: not is_toco(name), available("toco.recipes")))
def test_the_shipped_search_refuses_a_method_without_its_settings(name):
    with pytest.raises(ValueError, match=r"search varies method\.ptc\.weight, which the method"):
        for_recipe(dataclasses.replace(STUDY, recipe=name))


@pytest.mark.parametrize("name", filter(is_toco, available("toco.recipes")))
def test_the_shipped_search_fits_every_recipe_of_toco(name):
    study = for_recipe(dataclasses.replace(STUDY, recipe=name))
    plan = study.resolve()
    assert len(plan.rungs) >= 2
    own = flatten(plan.base)
    # The recipe's own values are the first trial, and one setting at least changes what a step
    # costs.
    assert plan.start == {path: own[path] for path in study.space}
    assert {objective.key: objective.higher_is_better for objective in study.objectives} == {
        "val/cam_miou": True,
        "val/seg_miou": True,
        "step_time_s": False,
    }
    assert "method.num_local_crops" in study.space
    assert plan.config(plan.start) == plan.base
    search_file(plan, "trials.jsonl", {}, "0").text()


def test_the_shipped_search_shares_no_seed_with_the_shipped_studies():
    from sweeps.__main__ import studies

    shipped = studies()
    assert shipped.pop("search") == STUDY
    tables = [study for study in shipped.values() if isinstance(study, Study)]
    seeds = set(itertools.chain.from_iterable(study.resolve().cells[-1].seeds for study in tables))
    assert STUDY.seed not in seeds | {seed for study in tables for seed in study.all_seeds}
