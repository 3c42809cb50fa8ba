"""What an evaluation counted: confusion matrices by image, and the histograms that hold those of every threshold.

This is what resampling over images and another background threshold need, and neither needs the network again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, Int64

FORMAT_VERSION = 1
"""Version of the file format; a reader refuses another one."""

_TEXTS = ("names", "class_names")


@dataclass(frozen=True, slots=True)
class Confusions:
    """Counts of pixels, void excluded. Matrices have the ground truth in their rows and the background first.

    Attributes:
        names: Images, in the order of the first axis of the matrices.
        class_names: The background first.
        seg: What the decoder predicts, by image.
        cam: Labels of the CAM at the fixed background threshold, by image.
        aux_cam: The same of the auxiliary CAM.
        thresholds: Those of the curve, ascending, with the fixed one among them.
        cam_histogram: :attr:`toco.metrics.cam_quality.CamQuality.histogram` over all images at ``thresholds``.
        aux_cam_histogram: The same of the auxiliary CAM.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    seg: Int32[np.ndarray, "n s s"]
    cam: Int32[np.ndarray, "n s s"]
    aux_cam: Int32[np.ndarray, "n s s"]
    thresholds: Float[np.ndarray, " t"]
    cam_histogram: Int64[np.ndarray, "s k bins"]
    aux_cam_histogram: Int64[np.ndarray, "s k bins"]

    def arrays(self) -> dict[str, Any]:
        """The content of the file, for :func:`numpy.savez_compressed`; no array of it is an array of objects."""
        values = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        return {"format_version": np.asarray(FORMAT_VERSION), **values}


def read_confusions(path: Path) -> Confusions:
    """Read ``evaluations/step_*.npz`` of a run folder.

    Raises:
        ValueError: It is not such a file, it is damaged, or of another version.
        FileNotFoundError: There is none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found: Mapping[str, Any] = dict(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # of damaged bytes zipfile, zlib, struct and NumPy make many kinds
        raise ValueError(f"{path} is not a file of confusion matrices, or is damaged: {error}.") from error
    names = [field.name for field in fields(Confusions)]
    if missing := [name for name in ("format_version", *names) if name not in found]:
        raise ValueError(f"{path} is not a file of confusion matrices: it lacks {', '.join(missing)}.")
    if (version := found["format_version"].tolist()) != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version}; this version of toco reads {FORMAT_VERSION}.")
    matrices = (*found["names"].shape, *2 * found["class_names"].shape)
    if any(found[name].shape != matrices for name in ("seg", "cam", "aux_cam")):
        raise ValueError(f"{path} is damaged: expected matrices of the shape {list(matrices)}.")
    values: dict[str, Any] = {name: found[name] for name in names}
    return Confusions(**(values | {name: tuple(values[name].tolist()) for name in _TEXTS}))
