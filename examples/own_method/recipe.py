"""The embedded benchmark with the method of this folder.

    python -m toco train own_method.recipe --run-dir runs/pooled

Hardware: one CPU core, about half a minute. The settings are those of shapes_nano, tuned for max
pooling. Expected: not measured; compare the mIoU of the CAM with that of shapes_nano, over several
seeds.
"""

from own_method import method

from toco.recipes import shapes_nano
from toco.train.run_config import RunConfig


def recipe() -> RunConfig:
    """Replace the method of shapes_nano, and keep its settings."""
    nano = shapes_nano.recipe()
    settings = nano.method.model_dump(exclude={"name"})
    return nano.model_copy(update={"method": method.Config(**settings)})
