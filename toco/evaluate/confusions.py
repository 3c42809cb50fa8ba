"""What an evaluation counted: confusion matrices by image, and the histograms that hold those of every threshold.

This is what resampling over images and another background threshold need, and neither needs the
network again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, Int64

from toco.files import check_version

FORMAT_VERSION = 1
"""Version of the file format; a reader refuses another one."""

_HISTOGRAM = "_histogram"
_MAPS_OF_TOCO = ("seg", "cam", "aux_cam")
"""What a file holds that does not say it: only ToCo wrote such files."""


@dataclass(frozen=True, slots=True)
class Confusions:
    """Counts of pixels, void excluded. Matrices have the ground truth in their rows and the background first.

    Attributes:
        names: Images, in the order of the first axis of the matrices.
        class_names: The background first.
        matrices: By label map and image: ``seg``, what the decoder predicts, if there is one;
            ``cam``, labels of the CAM at the fixed background threshold, and the same of each
            further CAM by its name.
        thresholds: Those of the curve, ascending, with the fixed one among them.
        histograms: :attr:`toco.metrics.cam_quality.CamQuality.histogram` of each CAM over all
            images at ``thresholds``.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    matrices: Mapping[str, Int32[np.ndarray, "n s s"]]
    thresholds: Float[np.ndarray, " t"]
    histograms: Mapping[str, Int64[np.ndarray, "s k bins"]]

    def have(self, thresholds: Iterable[float]) -> bool:
        """Whether pixels were counted at all of ``thresholds``, so that another evaluation needs no network."""
        return set(thresholds) <= set(self.thresholds.tolist())

    def arrays(self) -> dict[str, Any]:
        """The content of the file, for :func:`numpy.savez_compressed`; no array of it is an array of objects."""
        return {
            "format_version": np.asarray(FORMAT_VERSION),
            "names": np.asarray(self.names),
            "class_names": np.asarray(self.class_names),
            # A damaged archive may lack arrays without a trace, so it lists them.
            "maps": np.asarray(list(self.matrices)),
            **self.matrices,
            "thresholds": self.thresholds,
            **{f"{name}{_HISTOGRAM}": histogram for name, histogram in self.histograms.items()},
        }


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
        raise ValueError(
            f"{path} is not a file of confusion matrices, or is damaged: {error}."
        ) from error
    maps = found["maps"].tolist() if "maps" in found else _MAPS_OF_TOCO
    cams = [name for name in maps if name != "seg"]
    histograms = [f"{name}{_HISTOGRAM}" for name in cams]
    required = ("format_version", "names", "class_names", *maps, "thresholds", *histograms)
    if missing := [name for name in required if name not in found]:
        raise ValueError(
            f"{path} is not a file of confusion matrices: it lacks {', '.join(missing)}."
        )
    check_version(path, found["format_version"].tolist(), FORMAT_VERSION, "Evaluate again.")
    shape = (*found["names"].shape, *2 * found["class_names"].shape)
    if any(found[name].shape != shape for name in maps):
        raise ValueError(f"{path} is damaged: expected matrices of the shape {list(shape)}.")
    return Confusions(
        names=tuple(found["names"].tolist()),
        class_names=tuple(found["class_names"].tolist()),
        matrices={name: found[name] for name in maps},
        thresholds=found["thresholds"],
        histograms={name: found[f"{name}{_HISTOGRAM}"] for name in cams},
    )
