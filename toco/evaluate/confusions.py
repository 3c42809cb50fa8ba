"""Counts of an evaluation: confusion matrices of images, histograms over thresholds.

With these counts, resampling over images and other background thresholds need no network.
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
"""Maps of a file that does not list them; only the method ToCo wrote such files."""


@dataclass(frozen=True, slots=True)
class Confusions:
    """Counts of pixels without void.

    Attributes:
        names: Names of the images, in the order of the first axis of the matrices.
        class_names: Names of the classes, the background first.
        matrices: Confusion matrices by label map and image; rows are ground truth, columns
            predictions. ``seg`` is the decoder's prediction, if there is a decoder; ``cam`` has the
            labels of the CAM at the fixed background threshold; further CAMs have their names.
        thresholds: Thresholds of the curve and the fixed one, ascending.
        histograms: :attr:`toco.metrics.cam_quality.CamQuality.histogram` of each CAM over all
            images at ``thresholds``.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    matrices: Mapping[str, Int32[np.ndarray, "n s s"]]
    thresholds: Float[np.ndarray, " t"]
    histograms: Mapping[str, Int64[np.ndarray, "s k bins"]]

    def have(self, thresholds: Iterable[float]) -> bool:
        """Whether pixels were counted at all ``thresholds``, so that rescoring needs no network."""
        return set(thresholds) <= set(self.thresholds.tolist())

    def arrays(self) -> dict[str, Any]:
        """Return the arrays of the file, for :func:`numpy.savez_compressed`; none holds objects."""
        return {
            "format_version": np.asarray(FORMAT_VERSION),
            "names": np.asarray(self.names),
            "class_names": np.asarray(self.class_names),
            # A damaged archive may lack arrays without an error, so the file lists its maps.
            "maps": np.asarray(list(self.matrices)),
            **self.matrices,
            "thresholds": self.thresholds,
            **{f"{name}{_HISTOGRAM}": histogram for name, histogram in self.histograms.items()},
        }


def read_confusions(path: Path) -> Confusions:
    """Read ``evaluations/step_*.npz`` of a run folder.

    Raises:
        ValueError: The file is damaged, is no file of counts, or has another version.
        FileNotFoundError: There is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: Mapping[str, Any] = dict(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib, struct and NumPy raise many kinds for damaged bytes
        raise ValueError(
            f"{path} is not a file of confusion matrices, or is damaged: {error}."
        ) from error
    maps = arrays["maps"].tolist() if "maps" in arrays else _MAPS_OF_TOCO
    cams = [name for name in maps if name != "seg"]
    histograms = [f"{name}{_HISTOGRAM}" for name in cams]
    required = ("format_version", "names", "class_names", *maps, "thresholds", *histograms)
    if missing := [name for name in required if name not in arrays]:
        raise ValueError(
            f"{path} is not a file of confusion matrices: it lacks {', '.join(missing)}."
        )
    check_version(path, arrays["format_version"].tolist(), FORMAT_VERSION, "Evaluate again.")
    shape = (*arrays["names"].shape, *2 * arrays["class_names"].shape)
    if any(arrays[name].shape != shape for name in maps):
        raise ValueError(f"{path} is damaged: expected matrices of the shape {list(shape)}.")
    return Confusions(
        names=tuple(arrays["names"].tolist()),
        class_names=tuple(arrays["class_names"].tolist()),
        matrices={name: arrays[name] for name in maps},
        thresholds=arrays["thresholds"],
        histograms={name: arrays[f"{name}{_HISTOGRAM}"] for name in cams},
    )
