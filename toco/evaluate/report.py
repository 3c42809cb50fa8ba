"""The result of an evaluation: its numbers, its protocol, its file format and its table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from tabulate import SEPARATING_LINE, tabulate

from toco.evaluate.confusions import Confusions
from toco.files import printable

FORMAT_VERSION = 1
"""Version of the JSON format; a reader refuses another one."""

_WORDS = {"seg": "segmentation", "cam": "CAM", "aux": "auxiliary", "iou": "IoU"}
"""Words of titles for parts of names."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Data of one panel, at the size of the mask.

    Attributes:
        name: Name of the image.
        class_labels: Multi-hot ground truth of the foreground classes.
        image: The image.
        cams: Each CAM by name, as its maximum over the ground-truth classes.
        pseudo_label: Labels on which the decoder would be trained; 255 is uncertain.
        prediction: The decoder's prediction; ``None`` without a decoder.
        mask: Ground truth; 255 is void.
    """

    name: str
    class_labels: Float[np.ndarray, " k"]
    image: UInt8[np.ndarray, "h w 3"]
    cams: Mapping[str, Float[np.ndarray, "h w"]]
    pseudo_label: Integer[np.ndarray, "h w"]
    prediction: Integer[np.ndarray, "h w"] | None
    mask: Integer[np.ndarray, "h w"]


@dataclass(frozen=True, slots=True)
class ThresholdCurve:
    """mIoU of each CAM, by name, at each background threshold."""

    thresholds: tuple[float, ...]
    miou: Mapping[str, tuple[float | None, ...]]

    def to_json(self) -> dict[str, Sequence[float | None]]:
        """Return the JSON form: ``thresholds``, and ``NAME_miou`` of each CAM."""
        return {
            "thresholds": self.thresholds,
            **{f"{name}_miou": values for name, values in self.miou.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ThresholdCurve:
        """Build the curve from the form that :meth:`to_json` returns."""
        curves = {
            name.removesuffix("_miou"): tuple(v)
            for name, v in content.items()
            if name != "thresholds"
        }
        return cls(tuple(content["thresholds"]), curves)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one evaluation, as fractions in [0, 1].

    Exceptions are the confusion ratios, which have no upper limit, and the patch similarities in
    [-1, 1].

    Attributes:
        step: Optimizer updates before the evaluation; ``None`` outside of a training.
        protocol: The protocol as text.
        metrics: Metrics by key. A metric that is not defined on the split (no such pixel, no such
            label) is absent.
        class_names: Names of the classes, the background first.
        per_class: Scores in the order of ``class_names``; ``None`` for a class that the ground
            truth does not contain.
        threshold_curve: mIoU of the CAMs by threshold.
        patch_similarity: Mean cosine similarity of the patches after every block, first to last.
        pictures: Data of the panels; not part of the JSON.
        confusions: Counts of pixels; ``None`` where they were not kept. Not part of the JSON.
    """

    step: int | None
    protocol: str
    metrics: dict[str, float]
    class_names: tuple[str, ...]
    per_class: dict[str, tuple[float | None, ...]]
    threshold_curve: ThresholdCurve
    patch_similarity: tuple[float | None, ...]
    pictures: tuple[Picture, ...] = field(default=(), repr=False, compare=False)
    confusions: Confusions | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> str:
        """Return the evaluation as strict JSON, with ``null`` for undefined values."""
        content = {
            "format_version": FORMAT_VERSION,
            "step": self.step,
            "protocol": self.protocol,
            "metrics": self.metrics,
            "class_names": self.class_names,
            "per_class": self.per_class,
            "threshold_curve": self.threshold_curve.to_json(),
            "patch_similarity": self.patch_similarity,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Parse the text of :meth:`to_json`, which has no pictures and no counts.

        Raises:
            ValueError: The text is no evaluation, or has another version.
        """
        try:
            content = json.loads(text)
            if content["format_version"] != FORMAT_VERSION:
                version = content["format_version"]
                raise ValueError(
                    f"The evaluation has format version {version}; this program reads "
                    f"{FORMAT_VERSION}."
                )
            return cls(
                step=content["step"],
                protocol=content["protocol"],
                metrics=content["metrics"],
                class_names=tuple(content["class_names"]),
                per_class={name: tuple(values) for name, values in content["per_class"].items()},
                threshold_curve=ThresholdCurve.from_json(content["threshold_curve"]),
                patch_similarity=tuple(content["patch_similarity"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"This is not an evaluation written by this program: {error!r}."
            ) from error

    def coverage(self) -> str | None:
        """Describe for how many classes there is ground truth, see :func:`describe_coverage`."""
        return describe_coverage(self.per_class["cam_iou"])

    def table(self) -> str:
        """Format the scores per class, see :func:`class_table`."""
        return class_table(self.class_names, self.per_class)


def title_of(name: str) -> str:
    """Format the name of a map or of a column as a title.

    >>> title_of("aux_cam"), title_of("seg_iou")
    ('auxiliary CAM', 'segmentation IoU')
    """
    return " ".join(_WORDS.get(word, word) for word in name.split("_"))


def map_of(key: str) -> str | None:
    """Return the map whose mIoU at the fixed threshold a metric is; ``None`` for another metric.

    >>> map_of("val/aux_cam_miou"), map_of("val/cam_best_miou"), map_of("step_time_s")
    ('aux_cam', None, None)
    """
    match = re.fullmatch(r"val/(\w+)_miou", key)
    return None if match is None or match[1].endswith("_best") else match[1]


def mious(metrics: Mapping[str, float]) -> dict[str, float]:
    """Select the mIoU of each map at the fixed threshold, by the map's name.

    >>> mious({"val/seg_miou": 0.4, "val/cam_miou": 0.5, "val/cam_best_miou": 0.6})
    {'seg': 0.4, 'cam': 0.5}
    """
    return {name: value for key, value in metrics.items() if (name := map_of(key)) is not None}


def describe_coverage(iou: Sequence[float | None]) -> str | None:
    """Say how many foreground classes a split's ground truth contains.

    ``None`` if it contains all of them, and background.

    Args:
        iou: IoU of each class, the background first; ``None`` for a class that the ground truth
            does not contain.

    >>> describe_coverage([0.8, 0.5, None])
    'The masks of the split show 1 of 2 foreground classes.'
    >>> describe_coverage([0.8, 0.1])
    """
    defined = [value is not None for value in iou]
    if all(defined):
        return None
    if not any(defined):
        return "No pixel of the split has a ground truth, so there are no scores of pixels."
    restriction = "" if any(defined[1:]) else ": scores of pixels are those of the background alone"
    return (
        f"The masks of the split show {sum(defined[1:])} of {len(defined) - 1} "
        f"foreground classes{restriction}."
    )


def class_table(class_names: Sequence[str], per_class: Mapping[str, Sequence[float | None]]) -> str:
    """Format scores per class in percent, with their means; ``-`` marks an absent class.

    Args:
        class_names: Name of each row.
        per_class: Scores of each column, one for each row.
    """
    rows: list[list[str]] = [
        [printable(name), *(_percent(values[i]) for values in per_class.values())]
        for i, name in enumerate(class_names)
    ]
    means = ["mean", *(_percent(mean_defined(values)) for values in per_class.values())]
    headers = ["class", *map(title_of, per_class)]
    aligned = ("left", *("right" for _ in per_class))
    return tabulate(
        [*rows, SEPARATING_LINE, means], headers=headers, colalign=aligned, disable_numparse=True
    )


def undefined_to_none(values: Sequence[float]) -> tuple[float | None, ...]:
    """Replace values that are not finite by ``None``, which JSON can hold.

    >>> undefined_to_none([0.5, float("nan")])
    (0.5, None)
    """
    return tuple(value if math.isfinite(value) else None for value in values)


def mean_defined(values: Sequence[float | None]) -> float | None:
    """Average over the classes that have a score; ``None`` where none has."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
