"""Tuning of one row of the table of methods: the same rule and 20 trials for every method.

    python -m sweeps run methods_tuning --recipe shapes_rca
    python -m sweeps.methods_tuning record shapes_cam shapes_rca shapes_nano shapes_toco_rca

A loss weight is the ``weight`` of a term, which has a ``start_step``, too, or a setting of the
method that ends in ``_weight``. A weight of 0 stays 0, and other settings stay as they are.

The rule: every loss weight of the recipe is drawn from an eighth of its value to eight times it.
The label thresholds are drawn from 0.1 to 0.5 and from 0.5 to 0.85. The first trial has the
recipe's own values, the other 19 are random. The trial with the largest mean of two scores is
taken: the segmentation's mIoU, and the CAM's at its best threshold. That threshold is the one of
the table.

Trials are drawn before any result is known, so the tuning does not depend on how many run at once.
Scenes and training seed are those of no table: data seed 7, training seed 100. On another data set,
name a held-out list of images with ``--set``.

Default: the embedded benchmark, 20 trainings of half a minute on one core, about 6 minutes on two
cores for each recipe. ``record`` writes the finished trials to ``sweeps/methods_tuned.json``, from
which the table takes its values.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from optuna.distributions import BaseDistribution, FloatDistribution

from sweeps.core.commands.command import assignments, study_command
from sweeps.core.design.paper import SEG_MIOU
from sweeps.core.design.search_space import Objective, SearchStudy
from sweeps.core.plan.launch_options import default_storage
from sweeps.methods import (
    BASE,
    CAM_BEST_MIOU,
    CAM_BEST_THRESHOLD,
    RECIPES,
    TUNED,
    best_trial,
    read_trials,
)
from toco.config import flatten
from toco.files import write_text

FACTOR = 8.0
"""Weights are drawn from the recipe's value divided by this to times this."""
LOW, HIGH = "method.low_threshold", "method.high_threshold"
THRESHOLDS: dict[str, BaseDistribution] = {
    LOW: FloatDistribution(0.1, 0.5),
    HIGH: FloatDistribution(0.5, 0.85),
}
DATA_SEED = "data.seed"
TUNING_DATA_SEED = 7
_TERM, _START = ".weight", ".start_step"


def space(settings: dict[str, Any]) -> dict[str, BaseDistribution]:
    """Make the space of a recipe: its loss weights, and its label thresholds.

    A loss weight is the ``weight`` of a term, which has a first step, too, or a setting of the
    method that ends in ``_weight``. Those that are 0 stay 0.

    Args:
        settings: The recipe's values by dotted path.

    >>> settings = {"method.ptc.weight": 0.8, "method.ptc.start_step": 0, "method.par.x_weight": 1}
    >>> {path: (drawn.low, drawn.high) for path, drawn in space(settings).items()}
    {'method.ptc.weight': (0.1, 6.4)}
    """
    weights = {
        path: FloatDistribution(value / FACTOR, value * FACTOR, log=True)
        for path, value in settings.items()
        if _is_loss_weight(path, settings) and value > 0
    }
    return {**weights, **{path: d for path, d in THRESHOLDS.items() if path in settings}}


def _is_loss_weight(path: str, settings: dict[str, Any]) -> bool:
    if path.startswith("method.") and path.endswith(_TERM):
        return path.removesuffix(_TERM) + _START in settings
    return path.count(".") == 1 and path.startswith("method.") and path.endswith("_weight")


def for_recipe(study: SearchStudy) -> SearchStudy:
    """Make the space of the study's recipe, on scenes that no table uses.

    Raises:
        ValueError: The data set has no seed, and no setting of it was changed: the search would
            score the images of the table.
    """
    settings = flatten(study.base())
    changes = {"evaluate_every": settings["num_steps"], **study.changes}
    if DATA_SEED in settings:
        changes = {DATA_SEED: TUNING_DATA_SEED, **changes}
    elif not any(path.startswith("data.") and path != "data.root" for path in study.changes):
        raise ValueError(
            f"{study.name} would tune {study.recipe} on the images that the table scores. Name "
            "other lists with --set, as in --set data.val_list=held_out."
        )
    return dataclasses.replace(study, space=space(settings), changes=changes)


STUDY = SearchStudy(
    name="methods_tuning",
    title="Tuning of a method for the table of methods",
    recipe=RECIPES[BASE],
    space=THRESHOLDS,
    num_trials=20,
    num_random=20,
    rungs=None,
    objectives=(Objective(CAM_BEST_MIOU, "CAM, oracle"), Objective(SEG_MIOU, "seg mIoU")),
)
main = study_command(STUDY, __doc__, adapt=for_recipe)


@main.command("record")
@click.argument("recipes", nargs=-1, required=True)
@click.option(
    "--set",
    "changes",
    multiple=True,
    callback=assignments,
    help="Field that the tuning has set: a.b=value.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the data set (data.root).",
)
@click.option(
    "--storage", type=click.Path(path_type=Path), help="Folder of studies.  [default: ./results]"
)
@click.option(
    "--tuned",
    "path",
    default=TUNED,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; recipes that it has stay.  [default: that of the project]",
)
def record(
    recipes: tuple[str, ...],
    changes: Mapping[str, str],
    data: Path | None,
    storage: Path | None,
    path: Path,
) -> None:
    """Write the finished trials of RECIPES for the table of methods, and print the chosen ones."""
    trials = dict(read_trials(path)) if path.exists() else {}
    root = {} if data is None else {"data.root": str(data.expanduser().resolve())}
    for recipe in recipes:
        trials[recipe] = finished_trials(recipe, {**changes, **root}, storage or default_storage())
        best = best_trial(trials[recipe])
        settings = {**best["values"], **best["metrics"]}
        values = ", ".join(f"{name} {value:.3g}" for name, value in settings.items())
        click.echo(f"{recipe}: trial {best['number']}: {values}")
    write_text(path, json.dumps(trials, indent=1) + "\n")
    click.echo(f"Wrote {path}.")


def finished_trials(recipe: str, changes: Mapping[str, str], storage: Path) -> list[dict[str, Any]]:
    """Read the finished trials of a recipe's tuning.

    Raises:
        click.UsageError: A trial of the tuning has not ended, or lacks a score.
    """
    from sweeps.core.plan.survey import SearchSituation, survey
    from sweeps.core.store.search_record import ENDED

    study = for_recipe(dataclasses.replace(STUDY, recipe=recipe, changes=changes))
    situation = survey(study, storage)
    assert isinstance(situation, SearchSituation)  # noqa: S101 - the study is a search
    found = situation.record()
    ended = [trial for trial in found.trials if trial.state in ENDED] if found else []
    if len(ended) < study.num_trials:
        raise click.UsageError(
            f"{len(ended)} of {study.num_trials} trials of {recipe} have ended in {storage}; first "
            f"run python -m sweeps run methods_tuning --recipe {recipe}."
        )
    trials = []
    for trial in ended:
        entry = situation.ledger.entry(trial.key)
        if trial.state == "finished" and entry is not None:
            names = (CAM_BEST_MIOU, CAM_BEST_THRESHOLD, SEG_MIOU)
            metrics = {
                name: round(float(value), 6)
                for name in names
                if (value := entry.metrics.get(name)) is not None
            }
            if missing := set(names) - metrics.keys():
                raise click.UsageError(
                    f"Trial {trial.number} of {recipe} has no {', '.join(sorted(missing))}: "
                    "expected a method with a decoder."
                )
            trials.append(
                {"number": trial.number, "values": dict(trial.values), "metrics": metrics}
            )
    return trials


if __name__ == "__main__":
    main()
