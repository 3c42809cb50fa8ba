"""A run of two steps, to look at images with."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from toco.config import replace
from toco.train.loop import train
from toco.train.trained import open_trained


@pytest.fixture(scope="session")
def run_dir(tiny_config, tmp_path_factory):
    changes = {"num_steps": 2, "optim.warmup_steps": 1, "evaluate.num_pictures": 0, "device": "cpu"}
    scales = {
        "method.cam_scales": [1.0, 0.5],
        "evaluate.cam_scales": [1.0, 0.5],
        "evaluate.cam_flip": True,
    }
    config = replace(tiny_config, changes | scales)
    path = tmp_path_factory.mktemp("demo") / "my run"
    train(config, path, progress=False)
    return path


@pytest.fixture(scope="session")
def trained(run_dir):
    return open_trained(run_dir)


@pytest.fixture(scope="session")
def photo():
    """An image that is neither square nor of the network's size: bright in a corner, and noise."""
    pixels = np.random.default_rng(0).integers(0, 120, (40, 60, 3), dtype=np.uint8)
    pixels[5:20, 35:55, 0] = 230
    return pixels


@pytest.fixture(scope="session")
def file_of():
    """The bytes of an image file."""

    def encode(pixels, file_format="PNG", **options):
        file = BytesIO()
        Image.fromarray(pixels).save(file, file_format, **options)
        return file.getvalue()

    return encode
