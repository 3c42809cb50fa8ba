"""The method of this folder as a row of the table of methods.

    python -m toco train own_loss.recipe --run-dir runs/own_loss
    python -m sweeps run methods --also "Small tokens=own_loss.recipe"

Hardware: one CPU core, about 20 seconds. Expected: not measured; the second command gives the mIoU
beside that of the plain CAM.
"""

from own_loss import method
from toco.recipes import shapes_cam
from toco.train.run_config import RunConfig


def recipe() -> RunConfig:
    """Replace the method of the table's first row, and keep its settings."""
    plain = shapes_cam.recipe()
    settings = plain.method.model_dump(exclude={"name"})
    return plain.model_copy(update={"method": method.Config(**settings)})
