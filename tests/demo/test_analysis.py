import dataclasses

import pytest

from toco.demo.analysis import Analyst, patch_grid
from toco.methods import MethodConfig


@pytest.mark.parametrize(
    ("num_patches", "aspect", "grid"),
    [
        (784, 1.0, (28, 28)),
        (713, 500 / 375, (31, 23)),
        (713, 375 / 500, (23, 31)),
        (620, 500 / 333, (31, 20)),
        (7, 9.0, (7, 1)),
    ],
)
def test_the_grid_of_patches_fits_the_image(num_patches, aspect, grid):
    assert patch_grid(num_patches, aspect) == grid


def test_a_run_whose_method_has_no_thresholds_is_refused(trained):
    class Other(MethodConfig):
        name: str = "other"

    config = trained.config.model_copy(update={"method": Other()})
    with pytest.raises(ValueError, match="The method 'other' makes no pseudo labels from its CAM"):
        Analyst(dataclasses.replace(trained, config=config), 640)
