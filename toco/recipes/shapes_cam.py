"""The plain classifier with a nano ViT on the embedded benchmark: no GPU, no download.

    python -m toco train shapes_cam --run-dir runs/shapes_cam

Hardware: one CPU core, about 20 seconds, evaluation included.
"""

from toco.methods import cam
from toco.recipes import shapes_nano
from toco.train.run_config import RunConfig


def recipe() -> RunConfig:
    """Make ``shapes_nano`` without the losses of ToCo: the baseline of a table of methods."""
    nano = shapes_nano.recipe()
    common = nano.method.model_dump(include=set(cam.Config.model_fields) - {"name"})
    return nano.model_copy(update={"method": cam.Config(**common)})
