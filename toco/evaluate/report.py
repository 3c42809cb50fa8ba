"""The result of an evaluation: numbers, the protocol that they stand for, a file format and a table."""

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


@dataclass(frozen=True, slots=True)
class Picture:
    """What one panel shows, at the size of the mask.

    Attributes:
        name: Name of the image.
        class_labels: Multi-hot ground truth, foreground classes.
        image: The image itself.
        cams: Of each CAM by name, the maximum over the ground truth classes.
        pseudo_label: What the decoder would be trained on; 255 is uncertain.
        prediction: What the decoder predicts, if there is one.
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
    """mIoU of each CAM, by name, where a pixel is background at or below each threshold."""

    thresholds: tuple[float, ...]
    miou: Mapping[str, tuple[float | None, ...]]

    def to_json(self) -> dict[str, Sequence[float | None]]:
        """As an evaluation's file holds it: ``thresholds``, and ``NAME_miou`` of each CAM."""
        return {
            "thresholds": self.thresholds,
            **{f"{name}_miou": values for name, values in self.miou.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ThresholdCurve:
        """Read what :meth:`to_json` made."""
        curves = {
            name.removesuffix("_miou"): tuple(v)
            for name, v in content.items()
            if name != "thresholds"
        }
        return cls(tuple(content["thresholds"]), curves)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one evaluation found. All scores but the confusion ratios are fractions in [0, 1].

    Attributes:
        step: Optimizer updates before it, or ``None`` where it does not belong to a training.
        protocol: How it was measured, in words.
        metrics: Flat, by key. A metric that is not defined on the split (no such pixel, no such
            label) is absent.
        class_names: The background first.
        per_class: Scores in the order of ``class_names``; ``None`` for a class that the ground
            truth does not contain.
        threshold_curve: CAM mIoU by threshold.
        patch_similarity: Mean cosine similarity of the patches after every block, first to last.
        pictures: What the panels are drawn from; not part of the JSON.
        confusions: What was counted; ``None`` where it was not kept, and not part of the JSON
            either.
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
        """The content of ``evaluations/step_*.json``: strict JSON, ``null`` for what is not defined."""
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
        """Read what :meth:`to_json` wrote; pictures and counts are not in it.

        Raises:
            ValueError: It is not such a file, or of another version.
        """
        try:
            content = json.loads(text)
            if content["format_version"] != FORMAT_VERSION:
                found = content["format_version"]
                raise ValueError(
                    f"The evaluation has format version {found}; this program reads "
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
        """For how many classes there is ground truth: see :func:`describe_coverage`."""
        return describe_coverage(self.per_class["cam_iou"])

    def table(self) -> str:
        """The scores per class as text: see :func:`class_table`."""
        return class_table(self.class_names, self.per_class)


def title_of(name: str) -> str:
    """The name of a map or of a column as a title.

    >>> title_of("aux_cam"), title_of("seg_iou")
    ('auxiliary CAM', 'segmentation IoU')
    """
    return " ".join(_WORDS.get(word, word) for word in name.split("_"))


def map_of(key: str) -> str | None:
    """The map that a metric is the mIoU of at the fixed threshold; ``None`` for another metric.

    >>> map_of("val/aux_cam_miou"), map_of("val/cam_best_miou"), map_of("step_time_s")
    ('aux_cam', None, None)
    """
    match = re.fullmatch(r"val/(\w+)_miou", key)
    return None if match is None or match[1].endswith("_best") else match[1]


def mious(metrics: Mapping[str, float]) -> dict[str, float]:
    """The mIoU of each map, by its name, at the fixed threshold.

    >>> mious({"val/seg_miou": 0.4, "val/cam_miou": 0.5, "val/cam_best_miou": 0.6})
    {'seg': 0.4, 'cam': 0.5}
    """
    return {name: value for key, value in metrics.items() if (name := map_of(key)) is not None}


def describe_coverage(iou: Sequence[float | None]) -> str | None:
    """For how many foreground classes a split has ground truth, as a sentence; ``None`` where it has it for all.

    Args:
        iou: One for each class, the background first; ``None`` for a class that the ground truth
            does not contain.

    >>> describe_coverage([0.8, None]), describe_coverage([0.8, 0.1])
    ('The masks of the split show 0 of 1 foreground classes: scores of pixels are those of the background alone.', None)
    """
    defined = [value is not None for value in iou]
    if all(defined):
        return None
    if not any(defined):
        return "No pixel of the split has a ground truth, so there are no scores of pixels."
    what = "" if any(defined[1:]) else ": scores of pixels are those of the background alone"
    return f"The masks of the split show {sum(defined[1:])} of {len(defined) - 1} foreground classes{what}."


def class_table(class_names: Sequence[str], per_class: Mapping[str, Sequence[float | None]]) -> str:
    """Scores per class as text, in percent, with their means; ``-`` marks a class that is absent.

    Args:
        class_names: One for each row.
        per_class: Scores by column.
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
    """NaN as ``None``, which JSON can hold.

    >>> undefined_to_none([0.5, float("nan")])
    (0.5, None)
    """
    return tuple(value if math.isfinite(value) else None for value in values)


def mean_defined(values: Sequence[float | None]) -> float | None:
    """Mean over the classes that have a score; ``None`` where none has."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
