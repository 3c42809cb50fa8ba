"""Every recipe is a whole, valid, documented experiment."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from toco.backbones import vit
from toco.config import digest, flatten, replace
from toco.registry import available, load
from toco.train.run_config import RunConfig

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(params=[*available("toco.recipes"), "own_method.recipe", "own_loss.recipe"])
def recipe(request, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
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
    assert re.search(r"Expected(: not measured|\b.*?\d+\.\d)", text, re.DOTALL)


def test_every_setting_can_be_set_by_its_path(recipe):
    config = load("toco.recipes", recipe).recipe()
    assert replace(config, flatten(config)) == config


def test_paths_and_machines_do_not_enter_the_digest(recipe):
    config = load("toco.recipes", recipe).recipe()
    moved = replace(
        config, {"data.root": "/elsewhere", "device": "cpu", "num_workers": 0, "log_every": 7}
    )
    assert digest(moved) == digest(config)
    assert digest(replace(config, {"seed": 1})) != digest(config)
    assert digest(replace(config, {"method.segmentation.weight": 0.123})) != digest(config)


# DINOv2's authors put no digits of the SHA-256 into the names of their files.
SHA256 = {
    "dinov2_vits14_pretrain.pth": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"
}


def test_a_recipe_with_pretrained_weights_names_their_file_and_its_first_digits(recipe):
    module = load("toco.recipes", recipe)
    backbone = module.recipe().backbone
    if getattr(backbone, "weights", None) != "hub":
        return
    # timm, with what has to be imported before it
    load("toco.backbones", backbone.name).build(backbone.model_copy(update={"weights": None}))
    from timm.models import get_pretrained_cfg
    from torchvision.models import VGG16_Weights

    # timm names no file of a VGG; its weights are torchvision's.
    url = get_pretrained_cfg(backbone.model).url or VGG16_Weights.IMAGENET1K_V1.url
    file = url.rpartition("/")[2]
    digits = SHA256.get(file, file.rpartition("-")[2])
    assert digits.startswith(backbone.weights_sha256)
    assert file in module.__doc__
    assert backbone.model in module.__doc__


def test_a_file_of_other_weights_than_the_recipes_is_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"cls_token": torch.zeros(1)}, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    backbone = vit.Config(
        model="deit_tiny_patch16_224", weights=str(file), weights_sha256="b5f2ef4d"
    )
    with pytest.raises(
        ValueError, match=f"has SHA-256 {sha256[:8]}.* but backbone.weights_sha256 is b5f2ef4d"
    ):
        vit.build(backbone)
    # The right file is read; that it does not fit is another sentence.
    with pytest.raises(ValueError, match="does not fit this backbone"):
        vit.build(backbone.model_copy(update={"weights_sha256": sha256[:12]}))
    with pytest.raises(ValueError, match="weights_sha256"):
        vit.Config(weights_sha256="B5F2")
