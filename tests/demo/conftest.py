"""A run of two steps, to look at images with."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from toco.backbones import vit_nano
from toco.data import ViewsConfig, voc
from toco.evaluate import EvaluateConfig
from toco.methods import toco
from toco.train.loop import train
from toco.train.optim import OptimConfig
from toco.train.run_config import RunConfig
from toco.train.trained import open_trained


@pytest.fixture(scope="session")
def run_dir(data_root, tmp_path_factory):
    config = RunConfig(
        data=voc.Config(root=data_root, train_list="train"),
        views=ViewsConfig(crop_size_px=32),
        backbone=vit_nano.Config(width=16, depth=3, num_heads=2, image_size_px=32, weights=None),
        method=toco.Config(
            aux_block=1,
            cam_scales=(1.0, 0.5),
            num_local_crops=2,
            local_crop_size_px=16,
            decoder_width=8,
            projection=toco.ProjectionConfig(hidden_width=16, bottleneck_width=8, output_width=16),
        ),
        optim=OptimConfig(lr=1e-3, warmup_steps=1),
        evaluate=EvaluateConfig(size_px=32, cam_scales=(1.0, 0.5), curve_step=0.1, num_pictures=0),
        num_steps=2,
        batch_size=4,
        evaluate_every=2,
        num_workers=0,
        device="cpu",
    )
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
