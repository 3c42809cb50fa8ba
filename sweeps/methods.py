"""Methods side by side: plain CAM, RCA, ToCo, and ToCo with RCA's parts.

    python -m sweeps run methods
    python -m sweeps run methods --also "My method=my_package.my_recipe" --tuned tuned.json
    python -m sweeps run methods --system "CAM=my_package.cam" --system "ToCo=my_package.toco"

Every row is a recipe. Data, views, backbone, optimizer, steps, decoder, refinement of the labels
and evaluation are those of the first row; a recipe with others is refused. RCA and ToCo are
compared with the plain classifier, and ToCo + RCA with ToCo.

Each row was tuned with 20 trials by one rule (``methods_tuning``): loss weights and label
thresholds, on scenes and with a seed that this table does not use. The threshold of the CAM was
chosen in the same trials. The values from which the trials start had unequal care before; see
docs/side_by_side.md. ``sweeps/methods_tuned.json`` has all trials. The report
names rows that are not in the file: they keep the values of their recipes. A further row makes a
claim more, so the p values of all rows change, and more seeds may be needed.

Default: the embedded benchmark. 4 rows and the A/A row; 6 comparisons are tested after 3, 5, 7 and
10 seeds. These are 15 to 43 trainings of half a minute on one core, about 5 minutes on two cores
for the first 15.

Expected on the embedded benchmark, after 37 trainings (mIoU in percent, 7 to 10 seeds with standard
deviations of 0.7 to 4.8): CAM 29.8, 40.4, 48.4, 50.2 and segmentation 23.0, 34.9, 49.4, 51.3 from
the first row to the last. RCA and ToCo are shown to be above the plain CAM in both, by 10.6 and
18.8 points of CAM. ToCo + RCA is shown to be 1.8 points of CAM above ToCo; in segmentation the
comparison is given up after 5 seeds. Everything but the methods was chosen with ToCo.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import Declared
from sweeps.core.design.paper import CAM_MIOU, SEG_MIOU
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study
from sweeps.core.design.systems import THRESHOLD, System, Systems

CAM_BEST_MIOU, CAM_BEST_THRESHOLD = "val/cam_best_miou", "val/cam_best_threshold"
TUNED = Path(__file__).with_name("methods_tuned.json")
BASE = "CAM"


def best_trial(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the trial that the rule of the tuning takes.

    It has the largest mean of the segmentation's mIoU and of the CAM's at its best threshold. The
    earlier of two equal trials is taken.

    Args:
        trials: ``values`` by dotted path and ``metrics`` by key, of each trial.
    """
    return max(
        trials, key=lambda trial: trial["metrics"][CAM_BEST_MIOU] + trial["metrics"][SEG_MIOU]
    )


@cache
def read_trials(path: Path) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Read the trials of tunings, by recipe.

    Raises:
        ValueError: The file is no record of trials.
    """
    try:
        content = json.loads(path.read_text())
        for trials in content.values():
            best_trial(trials)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no record of tunings: expected what python -m sweeps.methods_tuning record "
            "writes."
        ) from error
    recorded: dict[str, Sequence[Mapping[str, Any]]] = content
    return recorded


def tuned(recipe: str, path: Path = TUNED) -> dict[str, Any]:
    """Return the tuned values of a recipe, by dotted path; empty where it was not tuned."""
    trials = read_trials(path).get(recipe)
    if trials is None:
        return {}
    best = best_trial(trials)
    return {**best["values"], THRESHOLD: best["metrics"][CAM_BEST_THRESHOLD]}


RECIPES = {
    BASE: "shapes_cam",
    "RCA": "shapes_rca",
    "ToCo": "shapes_nano",
    "ToCo + RCA": "shapes_toco_rca",
}
VERSUS = {"ToCo + RCA": "ToCo"}
PUBLISHED = {
    "RCA": "has 71.1 % mIoU on VOC val on top of OAA and 72.2 % on top of EPS, both with saliency "
    "maps and a ResNet101 DeepLab v2 trained on the pseudo labels (as quoted by Chen and Sun, CVPR "
    "2023).",
    "ToCo": "has 69.8 % mIoU on VOC val with DeiT-B, three scales, flip and CRF (its Table 2).",
}
COMPARED = Declared((CAM_MIOU, SEG_MIOU))
ALIKE = (
    "cam_scales",
    "cam_flip",
    "par",
    "decoder_width",
    "decoder_dilation",
    "segmentation.start_step",
    "energy.start_step",
    "dense_energy",
)
"""Settings of decoder and pseudo labels that all rows share."""


def systems(
    named: Mapping[str, str], versus: Mapping[str, str], path: Path = TUNED
) -> tuple[System, ...]:
    """Make the systems of recipes by label.

    Args:
        named: Recipe by label, in the order of the rows.
        versus: Label of the row that a row is compared with, where that is not the first.
        path: Record of the tunings. A recipe that it lacks has the values of the project's record.
    """
    first = next(iter(named), None)
    return tuple(
        System(
            label,
            recipe,
            tuned(recipe, path) or tuned(recipe),
            None if label == first else versus.get(label, first),
            PUBLISHED.get(label, "") if RECIPES.get(label) == recipe else "",
        )
        for label, recipe in named.items()
    )


STUDY = Study(
    name="methods",
    title="Methods under one protocol",
    recipe=RECIPES[BASE],
    design=Systems(systems(RECIPES, VERSUS), COMPARED, ALIKE),
    seeds=Sequential(),
    metrics=(
        Metric(CAM_MIOU, "CAM"),
        Metric(CAM_BEST_MIOU, "CAM, oracle"),
        Metric(SEG_MIOU, "seg"),
        Metric("val/patch_similarity_last", "similarity", higher_is_better=False),
        Metric("step_time_s", "s a step", higher_is_better=False),
        Metric("peak_memory_gb", "GB", higher_is_better=False),
        Metric("parameters_m", "M parameters", higher_is_better=False),
    ),
    purpose="direction",
)


def named_recipes(
    _context: click.Context, _option: click.Parameter, texts: Sequence[str]
) -> dict[str, str]:
    """Read ``LABEL=RECIPE`` given several times; a click callback."""
    recipes: dict[str, str] = {}
    for text in texts:
        label, equals, recipe = text.partition("=")
        if not (label and equals and recipe) or label in recipes:
            raise click.BadParameter(f"expected LABEL=RECIPE, with each label once; got {text!r}")
        recipes[label] = recipe
    return recipes


def with_rows(
    study: Study,
    system: Mapping[str, str],
    also: Mapping[str, str],
    tuned_file: Path | None = None,
) -> Study:
    """Give the table other rows.

    Args:
        study: The study with the common options.
        system: Recipe by label of all rows; empty for those of the benchmark.
        also: Recipe by label of further rows.
        tuned_file: Record of further tunings.

    Raises:
        click.UsageError: ``--recipe`` is given, or a label occurs twice.
    """
    named = dict(system or RECIPES)
    if study.recipe != STUDY.recipe:
        raise click.UsageError(
            f"--recipe {study.recipe}: every row of this table is a recipe; name them with "
            "--system LABEL=RECIPE, or add one with --also LABEL=RECIPE."
        )
    if repeated := named.keys() & also.keys():
        raise click.UsageError(f"--also {min(repeated)}: there is a row with this label already.")
    rows = systems({**named, **also}, {} if system else VERSUS, tuned_file or TUNED)
    return dataclasses.replace(study, recipe=rows[0].recipe, design=Systems(rows, COMPARED, ALIKE))


main = study_command(
    STUDY,
    __doc__,
    adapt=with_rows,
    options=[
        click.option(
            "--system",
            multiple=True,
            callback=named_recipes,
            help="A row, LABEL=RECIPE, in the place of those of the benchmark. The first is the "
            "base of the others.",
        ),
        click.option(
            "--also",
            multiple=True,
            callback=named_recipes,
            help="A further row, LABEL=RECIPE, compared with the first.",
        ),
        click.option(
            "--tuned",
            "tuned_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Record of your own tunings, from python -m sweeps.methods_tuning record --tuned "
            "FILE.",
        ),
    ],
)

if __name__ == "__main__":
    main()
