import pytest
from pydantic import ValidationError

from toco.config import digest, replace
from toco.recipes import shapes_nano
from toco.train.optim_config import AdamWConfig, SgdConfig
from toco.train.run_config import RunConfig

BASE = shapes_nano.recipe()


def test_a_config_of_before_without_a_name_is_one_of_adamw():
    stored = BASE.model_dump(mode="json")
    assert stored["optim"].pop("name") == "adamw"
    loaded = RunConfig.model_validate(stored)
    assert loaded == BASE
    assert isinstance(loaded.optim, AdamWConfig)
    assert digest(loaded) == digest(BASE)


def test_the_other_optimizer_starts_from_its_own_defaults_and_can_be_set_at_once():
    assert BASE.optim != AdamWConfig()
    assert replace(BASE, {"optim.name": "sgd"}).optim == SgdConfig()
    changed = replace(BASE, {"optim.drop_steps": "[5, 300]", "optim.name": "sgd"})
    assert changed.optim == SgdConfig(drop_steps=(5, 300))
    assert RunConfig.model_validate_json(changed.model_dump_json()) == changed
    assert digest(changed) != digest(replace(BASE, {"optim.name": "sgd"})) != digest(BASE)
    back = replace(changed, {"optim.name": "adamw", "optim.warmup_steps": 2})
    assert back.optim == AdamWConfig(warmup_steps=2)
    # The name that a config has already changes nothing.
    assert replace(BASE, {"optim.name": "adamw"}) == BASE


def test_settings_of_the_other_optimizer_are_unknown():
    with pytest.raises(ValueError, match=r"^The config has no field 'optim\.momentum'\."):
        replace(BASE, {"optim.momentum": "0.8"})
    with pytest.raises(ValueError, match=r"^The config has no field 'optim\.betas'\."):
        replace(BASE, {"optim.name": "sgd", "optim.betas": "[0.9, 0.99]"})


@pytest.mark.parametrize("name", ["adam", "", 5, None, ["sgd"]])
def test_an_unknown_name_is_refused_with_the_two_that_there_are(name):
    with pytest.raises(ValueError, match="is not one of the optimizers: adamw, sgd"):
        replace(BASE, {"optim.name": name})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.momentum": 0}, "nesterov: expected a momentum above 0, got 0; set nesterov=false"),
        ({"optim.momentum": 1.0}, r"optim\.momentum: Input should be less than 1 \(got 1\.0\)"),
        ({"optim.drop_factor": 1.0}, r"optim\.drop_factor: Input should be less than 1"),
        ({"optim.drop_steps": [5, 5]}, r"expected ascending steps, .* got \(5, 5\)"),
        ({"optim.drop_steps": [7, 5]}, r"expected ascending steps, .* got \(7, 5\)"),
        ({"optim.drop_steps": [0]}, r"the first after warmup_steps 0, got \(0,\)"),
        (
            {"optim.drop_steps": [4, 8], "optim.warmup_steps": 4},
            r"the first after warmup_steps 4, got \(4, 8\)",
        ),
        ({"optim.drop_steps": [5, 360]}, r"drop_steps \(5, 360\) are not all below num_steps 360"),
        ({"optim.warmup_steps": 360}, r"warmup_steps 360 is not below num_steps 360"),
        ({"optim": 5}, r"optim: expected settings below it, as in optim\.NAME=VALUE"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(replace(BASE, {"optim.name": "sgd"}), changes)


def test_the_last_step_may_drop_and_momentum_may_be_left_out():
    changes = {"optim.name": "sgd", "optim.drop_steps": [359], "optim.nesterov": False}
    assert replace(BASE, changes | {"optim.momentum": 0}).optim.num_moments() == 0
    assert replace(BASE, changes).optim.num_moments() == 1
    assert BASE.optim.num_moments() == 2


def test_a_recipe_names_the_settings_of_one_optimizer():
    assert BASE.model_copy(update={"optim": SgdConfig()}).optim.name == "sgd"
    with pytest.raises(ValidationError, match="momentum"):
        AdamWConfig(momentum=0.9)
