"""ToCo on the recorded tiny network of the official code, through the official parameter names."""

import numpy as np
import pytest
import torch

from toco.backbones import vit_nano
from toco.methods import toco
from toco.official.names import from_official


@pytest.fixture(scope="session")
def tiny_method():
    """Builds ToCo with the official settings on the recorded tiny network."""

    def build(state):
        backbone = vit_nano.Config(
            width=48, depth=4, num_heads=3, patch_size_px=16, image_size_px=64, weights=None
        )
        config = toco.Config(
            aux_block=1,
            token_box="official",
            local_crop_size_px=32,
            decoder_width=32,
            projection=toco.ProjectionConfig(hidden_width=64, bottleneck_width=16, output_width=32),
            dense_energy=toco.DenseEnergyConfig(filter_name="lattice"),
        )
        method = toco.build(
            config, vit_nano.build(backbone), num_foreground_classes=len(state["classifier.weight"])
        )
        recorded = {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}
        method.load_state_dict(from_official(recorded, method.state_dict()))
        return method

    return build
