"""The table of methods: its rule of tuning, its recorded trials, and its rows."""

import dataclasses
import json

import click
import pytest

from sweeps import methods, methods_tuning
from sweeps.core.design.systems import THRESHOLD
from toco.config import flatten
from toco.registry import load

LOW = "method.low_threshold"
CAM, SEG, BEST = methods.CAM_BEST_MIOU, methods.SEG_MIOU, methods.CAM_BEST_THRESHOLD


def trial(number, cam, seg):
    return {"number": number, "values": {}, "metrics": {CAM: cam, SEG: seg, BEST: 0.5}}


def test_the_rule_takes_the_best_mean_and_the_earlier_of_equals():
    trials = [trial(0, 0.5, 0.3), trial(1, 0.375, 0.5), trial(2, 0.5, 0.375), trial(3, 0.6, 0.2)]
    assert methods.best_trial(trials)["number"] == 1


@pytest.mark.parametrize("recipe", methods.RECIPES.values())
def test_every_row_was_tuned_with_the_same_budget_and_the_rule(recipe):
    trials = methods.read_trials(methods.TUNED)[recipe]
    assert [trial["number"] for trial in trials] == list(range(methods_tuning.STUDY.num_trials))
    settings = flatten(load("toco.recipes", recipe).recipe())
    space = methods_tuning.space(settings)
    assert trials[0]["values"] == {path: settings[path] for path in space}
    for tried in trials:
        assert tried["values"].keys() == space.keys()
        for path, value in tried["values"].items():
            assert space[path].low <= value <= space[path].high
    best = methods.best_trial(trials)
    tuned = methods.tuned(recipe)
    assert tuned == {**best["values"], THRESHOLD: best["metrics"][BEST]}
    (system,) = [s for s in methods.STUDY.design.systems if s.recipe == recipe]
    assert system.tuned == tuned


def test_the_space_has_the_loss_weights_of_the_method_and_its_label_thresholds():
    settings = flatten(load("toco.recipes", "shapes_toco_rca").recipe())
    assert set(methods_tuning.space(settings)) == {
        "method.aux_weight",
        "method.ptc.weight",
        "method.ctc.weight",
        "method.segmentation.weight",
        "method.energy.weight",
        "method.region_contrast.weight",
        "method.low_threshold",
        "method.high_threshold",
    }


def test_no_table_uses_the_scenes_and_the_seed_of_the_tuning():
    study = methods_tuning.for_recipe(methods_tuning.STUDY)
    base = study.base()
    assert base.data.seed == 7 != load("toco.recipes", "shapes_nano").recipe().data.seed
    plan = methods.STUDY.resolve()
    assert base.seed not in {trial.seed for trial in plan.trials}


def test_rows_may_be_replaced_and_added():
    added = methods.with_rows(methods.STUDY, {}, {"Mine": "shapes_nano"})
    labels = [system.label for system in added.design.systems]
    assert labels == [*methods.RECIPES, "Mine"]
    assert added.design.systems[-1].versus == "CAM"
    replaced = methods.with_rows(methods.STUDY, {"A": "shapes_nano", "B": "shapes_rca"}, {})
    assert replaced.recipe == "shapes_nano"
    assert [(s.label, s.versus) for s in replaced.design.systems] == [("A", None), ("B", "A")]


def test_a_label_twice_and_a_recipe_option_are_refused():
    with pytest.raises(click.UsageError, match=r"--also ToCo: there is a row with this label"):
        methods.with_rows(methods.STUDY, {}, {"ToCo": "shapes_rca"})
    other = dataclasses.replace(methods.STUDY, recipe="shapes_nano")
    with pytest.raises(click.UsageError, match=r"every row of this table is a recipe"):
        methods.with_rows(other, {}, {})


def test_a_record_of_ones_own_adds_rows_and_keeps_the_projects(tmp_path):
    own = tmp_path / "tuned.json"
    mine = {"number": 0, "values": {LOW: 0.3}, "metrics": {CAM: 0.4, SEG: 0.4, BEST: 0.66}}
    own.write_text(json.dumps({"shapes_nano": [mine]}))
    named = {"A": "shapes_cam", "B": "shapes_nano"}
    first, second = methods.systems(named, {}, own)
    assert first.tuned == methods.tuned("shapes_cam")
    assert second.tuned == {LOW: 0.3, THRESHOLD: 0.66}
    study = methods.with_rows(methods.STUDY, named, {}, own)
    assert study.design.systems == (first, second)


@pytest.mark.parametrize("content", ["[]", "no json", '{"a": [{}]}', '{"a": []}', '{"a": 1}'])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tuned\.json is no record of tunings: expected what"):
        methods.read_trials(path)


@pytest.mark.parametrize("text", ["own.recipe", "=own.recipe", "Mine=", "A=x"])
def test_a_row_is_a_label_and_a_recipe(text):
    option = next(o for o in methods.main.commands["run"].params if o.name == "also")
    texts = (text, "A=y") if text == "A=x" else (text,)
    with pytest.raises(click.BadParameter, match="expected LABEL=RECIPE, with each label once"):
        methods.named_recipes(click.Context(methods.main), option, texts)


def test_a_tuning_on_the_images_of_the_table_is_refused():
    study = dataclasses.replace(methods_tuning.STUDY, recipe="voc_deit_b")
    with pytest.raises(ValueError, match=r"on the images that the table scores\. Name other lists"):
        methods_tuning.for_recipe(study)
    held_out = dataclasses.replace(study, changes={"data.val_list": "held_out"})
    assert methods_tuning.for_recipe(held_out).base().data.val_list == "held_out"
