"""Every recipe is a whole, valid, documented experiment."""

import json

import pytest

from toco.config import digest, flatten, replace
from toco.registry import available, load
from toco.train.run_config import RunConfig


@pytest.fixture(params=available("toco.recipes"))
def recipe(request):
    return request.param


def test_a_recipe_is_a_config_that_survives_json(recipe):
    config = load("toco.recipes", recipe).recipe()
    again = RunConfig.model_validate(json.loads(config.model_dump_json()))
    assert again == config
    assert digest(again) == digest(config)


def test_a_recipe_says_its_command_and_what_to_expect(recipe):
    text = load("toco.recipes", recipe).__doc__
    assert f"python -m toco train {recipe}" in text
    assert "mIoU" in text


def test_every_setting_can_be_set_by_its_path(recipe):
    config = load("toco.recipes", recipe).recipe()
    assert replace(config, flatten(config)) == config


def test_paths_and_machines_do_not_enter_the_digest(recipe):
    config = load("toco.recipes", recipe).recipe()
    moved = replace(config, {"data.root": "/elsewhere", "device": "cpu", "num_workers": 0, "log_every": 7})
    assert digest(moved) == digest(config)
    assert digest(replace(config, {"seed": 1})) != digest(config)
    assert digest(replace(config, {"method.ptc.weight": 0.123})) != digest(config)
