"""The recorded tiny network of the official code as a checkpoint that the official code would have
saved.
"""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from toco.__main__ import main

# The tiny network's sizes, beside those of the recipe.
TINY = {
    "backbone.name": "vit_nano",
    "backbone.width": 48,
    "backbone.depth": 4,
    "backbone.num_heads": 3,
    "backbone.patch_size_px": 16,
    "backbone.image_size_px": 64,
    "backbone.weights": "null",
    "method.aux_block": 1,
    "method.token_box": "official",
    "method.local_crop_size_px": 32,
    "method.decoder_width": 32,
    "method.projection.hidden_width": 64,
    "method.projection.bottleneck_width": 16,
    "method.projection.output_width": 32,
    "method.dense_energy.filter_name": "lattice",
    "device": "cpu",
}


@pytest.fixture(scope="session")
def official_state(golden):
    """State dict of the official tiny network, without the prefix of its wrapper."""
    arrays = golden("network_tiny")
    names = [name for name in arrays if name.startswith("state/")]
    return {
        name.removeprefix("state/"): torch.from_numpy(np.asarray(arrays[name])) for name in names
    }


@pytest.fixture
def write(tmp_path):
    """Saves a state dict as the official code does."""

    def save(state, prefix="module.", name="model_iter_20000.pth"):
        torch.save({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def toco():
    """Runs a verb; gives its output, or its error."""

    def run(*words, fails=False):
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert (done.exit_code != 0) == fails, done.output
        return done.output

    return run


@pytest.fixture
def tiny_settings():
    """Options that make a recipe's network the tiny one, with further changes."""

    def options(changes):
        return [f"--set={path}={value}" for path, value in {**TINY, **changes}.items()]

    return options


@pytest.fixture
def import_tiny(toco, tiny_settings, tmp_path):
    """Runs ``import-official`` on a checkpoint of the tiny network; gives the output and the run
    folder.
    """

    def run(file, *words, recipe="voc_deit_b", changes=(), fails=False, name="run"):
        run_dir = tmp_path / name
        output = toco(
            "import-official",
            file,
            "--recipe",
            recipe,
            "--run-dir",
            run_dir,
            *tiny_settings(dict(changes)),
            *words,
            fails=fails,
        )
        return output, run_dir

    return run
