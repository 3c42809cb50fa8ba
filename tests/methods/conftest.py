"""ToCo on the recorded tiny network of the official code, through the official parameter names."""

import numpy as np
import pytest
import torch

from toco.backbones import vit_nano
from toco.methods import toco

OFFICIAL_PREFIXES = {
    "backbone.vit": "encoder",
    "projection": "proj_head",
    "teacher": "proj_head_t",
    "decoder": "decoder",
    "classifier": "classifier",
    "aux_classifier": "aux_classifier",
}


@pytest.fixture(scope="session")
def official_name():
    """Maps the name of one of our parameters to the official one."""

    def official(name):
        prefix = next(p for p in OFFICIAL_PREFIXES if name.startswith(f"{p}."))
        return OFFICIAL_PREFIXES[prefix] + name.removeprefix(prefix)

    return official


@pytest.fixture(scope="session")
def tiny_method(official_name):
    """Builds ToCo with the official settings on the recorded tiny network."""

    def build(state):
        backbone = vit_nano.Config(width=48, depth=4, num_heads=3, patch_size_px=16, image_size_px=64, weights=None)
        config = toco.Config(
            aux_block=1,
            token_box="official",
            local_crop_size_px=32,
            decoder_width=32,
            projection=toco.ProjectionConfig(hidden_width=64, bottleneck_width=16, output_width=32),
            dense_energy=toco.DenseEnergyConfig(filter_name="lattice"),
        )
        method = toco.build(config, vit_nano.build(backbone), num_foreground_classes=len(state["classifier.weight"]))
        ours = {}
        for name, value in method.state_dict().items():
            recorded = torch.from_numpy(np.asarray(state[official_name(name)]))
            ours[name] = recorded.reshape(value.shape)  # a classifier is a 1x1 convolution there
        method.load_state_dict(ours)
        return method

    return build
