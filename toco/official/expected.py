"""The authors' results for the recipes, and sentences that compare a run with them.

``expected.csv`` holds the last evaluation in each of the authors' four logs: IoU in percent by
class of the CAM, the auxiliary CAM and the segmentation. Table 2 of the paper gives one number for
each split.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tabulate import SEPARATING_LINE, tabulate

from toco.config import diff
from toco.evaluate import Evaluation
from toco.evaluate.report import mean_defined
from toco.predict.config import InferenceConfig
from toco.registry import load
from toco.train.run_config import RunConfig

_FILE = Path(__file__).with_name("expected.csv")
_SCORES = {"cam_iou": "CAM", "aux_cam_iou": "aux CAM", "seg_iou": "segmentation"}
"""Scores by class that an evaluation shares with the logs, and their headings."""
_SAME_EVALUATION = {
    f"evaluate.{name}" for name in ("curve_stop", "curve_step", "average_last", "max_images")
}
"""Settings without effect on these scores, except by the number of images, which is compared."""
_MAX_LISTED = 6
"""Settings that a sentence lists at most."""


class Segmentation(NamedTuple):
    """A number of Table 2, and the images behind it.

    The mIoU is in percent, with several scales, flip and CRF.
    """

    miou: float
    num_images: int


_TABLE_2 = {
    "voc_deit_b": {"val": Segmentation(69.8, 1449), "test": Segmentation(70.5, 1456)},
    "voc_vit_b": {"val": Segmentation(71.1, 1449), "test": Segmentation(72.2, 1456)},
    "coco_deit_b": {"val": Segmentation(41.3, 40_137)},
    "coco_vit_b": {"val": Segmentation(42.3, 40_137)},
}
"""Table 2 of the paper by recipe and split."""
_LOGGED_IMAGES = {"voc_deit_b": 1449, "voc_vit_b": 1449, "coco_deit_b": 5000, "coco_vit_b": 5000}
"""Images of the evaluation in each log."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The authors' results with a recipe.

    Attributes:
        recipe: Name of the recipe.
        class_names: The background first.
        per_class: ``cam_iou``, ``aux_cam_iou`` and ``seg_iou`` as fractions, in the order of
            ``class_names``.
        num_images: Images of the split behind these scores.
        table2: Table 2 of the paper by split.
    """

    recipe: str
    class_names: tuple[str, ...]
    per_class: Mapping[str, tuple[float, ...]]
    num_images: int
    table2: Mapping[str, Segmentation]

    def miou(self, score: str) -> float:
        """Mean over the classes of ``cam_iou``, ``aux_cam_iou`` or ``seg_iou``, as a fraction."""
        return sum(self.per_class[score]) / len(self.class_names)


@cache
def expected(recipe: str | None) -> Expected | None:
    """Return the authors' results with ``recipe``; ``None`` if the authors did not train it.

    >>> result = expected("voc_deit_b")
    >>> result and round(100 * result.miou("seg_iou"), 1)
    68.1
    """
    if recipe not in _TABLE_2:
        return None
    with _FILE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["recipe"] == recipe]
    return Expected(
        recipe=recipe,
        class_names=tuple(row["class"] for row in rows),
        per_class={
            score: tuple(float(row[score.removesuffix("_iou")]) / 100 for row in rows)
            for score in _SCORES
        },
        num_images=_LOGGED_IMAGES[recipe],
        table2=_TABLE_2[recipe],
    )


def compare_with_log(
    evaluation: Evaluation, recipe: str | None, config: RunConfig, num_images: int, step: int
) -> str | None:
    """Compare scores with the authors' by class, and say whether they are comparable.

    Returns ``None`` where the authors have no results for the recipe.

    Args:
        evaluation: Scores of the run.
        recipe: Recipe of the run.
        config: Config of the run, as evaluated.
        num_images: Images in the split.
        step: Updates before the evaluation.
    """
    authors = expected(recipe)
    if authors is None or authors.class_names != evaluation.class_names:
        return None

    # Table: this run, the authors and the difference, for each score that the run has.
    columns = [score for score in _SCORES if score in evaluation.per_class]
    rows = [
        [
            name,
            *(
                cell
                for score in columns
                for cell in _cells(evaluation.per_class[score][i], authors.per_class[score][i])
            ),
        ]
        for i, name in enumerate(authors.class_names)
    ]
    means = [
        cell
        for score in columns
        for cell in _cells(mean_defined(evaluation.per_class[score]), authors.miou(score))
    ]
    headers = [
        "class",
        *(text for score in columns for text in (_SCORES[score], "authors", "difference")),
    ]
    table = tabulate(
        [*rows, SEPARATING_LINE, ["mean", *means]],
        headers=headers,
        colalign=("left", *("right" for _ in headers[1:])),
        disable_numparse=True,
    )

    # Comparable? Settings of the evaluation are compared here, the others in _compare.
    official: RunConfig = load("toco.recipes", authors.recipe).recipe()
    changes = diff(official, config, run_only=False)
    protocol = [
        path for path in changes if _is_of_evaluation(path) and path not in _SAME_EVALUATION
    ]
    protocol_difference = (
        f"the protocol is not that of the log ({_listed(protocol)})" if protocol else None
    )
    evaluated = min(num_images, config.evaluate.max_images or num_images)
    sentence = _compare(official, config, step, evaluated, authors.num_images, protocol_difference)
    return f"{table}\n{sentence}"


def compare_with_table2(
    miou: float,
    recipe: str | None,
    split: str,
    config: RunConfig,
    inference: InferenceConfig,
    num_images: int,
    step: int,
) -> str | None:
    """Compare the mIoU (a fraction) with that of Table 2, in sentences.

    Returns ``None`` where the table has no such number.

    Args:
        miou: mIoU of the segmentation over the split.
        recipe: Recipe of the run.
        split: ``val`` or ``test``, as in the table.
        config: Config of the run.
        inference: Settings with which the images were segmented.
        num_images: Number of segmented images.
        step: Updates before the checkpoint.
    """
    authors = expected(recipe)
    if recipe is None or authors is None or split not in authors.table2:
        return None
    table = authors.table2[split]
    official: RunConfig = load("toco.recipes", recipe).recipe()
    # The filter of the CRF is chosen for the machine, so it may differ.
    changes = [path for path in diff(official.inference, inference) if path != "crf.filter_name"]
    protocol_difference = (
        f"the images were segmented in another way ({_listed(changes)})" if changes else None
    )
    difference = 100 * miou - table.miou
    return (
        f"Table 2 of the paper has {table.miou:.1f} mIoU for {recipe} on {split}; this is "
        f"{100 * miou:.1f} ({difference:+.1f}). "
        f"{_compare(official, config, step, num_images, table.num_images, protocol_difference)}"
    )


def _compare(
    official: RunConfig,
    config: RunConfig,
    step: int,
    num_images: int,
    num_authors_images: int,
    protocol_difference: str | None,
) -> str:
    """Say in a sentence whether two evaluations measure the same.

    Args:
        official: Config of the recipe.
        config: Config of the run.
        step: Updates before the checkpoint.
        num_images: Images that were evaluated.
        num_authors_images: Images that the authors evaluated.
        protocol_difference: Difference of the evaluation, apart from its images.
    """
    differences = [] if protocol_difference is None else [protocol_difference]
    if num_images != num_authors_images:
        differences.insert(0, f"{num_images} images were evaluated instead of {num_authors_images}")
    if step != official.num_steps:
        differences.append(f"the checkpoint is of step {step} and not {official.num_steps}")
    changes = diff(official, config, run_only=False)
    if training := [
        path for path in changes if not _is_of_evaluation(path) and not _may_differ(path, config)
    ]:
        differences.append(f"it was trained with other settings ({_listed(training)})")
    if not differences:
        return "The numbers are comparable: the same images, protocol and settings (one seed each)."
    return f"The numbers are not comparable: {'; '.join(differences)}."


def _is_of_evaluation(path: str) -> bool:
    return path.startswith("evaluate.") or path == "data.val_list"


def _may_differ(path: str, config: RunConfig) -> bool:
    """Whether a setting may differ without changing the experiment.

    These are the places of data and weights, the seed, and choices for the machine.
    """
    if path == "backbone.weights":
        return config.backbone.weights is not None
    if path.startswith("data."):
        return path not in ("data.name", "data.train_list")
    return path in ("seed", "method.dense_energy.filter_name")


def _listed(paths: Sequence[str]) -> str:
    text = ", ".join(paths[:_MAX_LISTED])
    return text if len(paths) <= _MAX_LISTED else f"{text} and {len(paths) - _MAX_LISTED} more"


def _cells(value: float | None, authors_value: float) -> tuple[str, str, str]:
    """Three cells in percent: this run, the authors, the difference."""
    if value is None:
        return "-", f"{100 * authors_value:.1f}", "-"
    return (
        f"{100 * value:.1f}",
        f"{100 * authors_value:.1f}",
        f"{100 * (value - authors_value):+.1f}",
    )
