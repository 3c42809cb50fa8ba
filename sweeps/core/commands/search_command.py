"""The command line of a search: the verbs and options of a study, as far as they mean something for it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sweeps.core.commands.command import COMMON, RESOURCES, RUN, RUNNING, STDOUT, TRACKING, Verb, read_from, verb_group
from sweeps.core.design.search_space import SearchStudy
from sweeps.core.plan.launch_options import Launch


def search_command(
    study: SearchStudy, text: str | None, adapt: Callable[[SearchStudy], SearchStudy] | None = None
) -> click.Group:
    """The verbs of a search; without a verb it runs.

    Args:
        study: The search as it is without options.
        text: Its help: the docstring of its file.
        adapt: Called with the search after its options; returns the one to use. For what depends on the recipe.
    """

    def build(
        *,
        recipe: str | None,
        data: Path | None,
        weights: Path | None,
        changes: dict[str, Any],
        trials: int | None,
        seed: int | None,
    ) -> SearchStudy:
        built = dataclasses.replace(
            study,
            recipe=recipe or study.recipe,
            num_trials=study.num_trials if trials is None else trials,
            seed=study.seed if seed is None else seed,
            changes={**study.changes, **changes, **read_from(data, weights)},
        )
        return adapt(built) if adapt else built

    return verb_group(study.name, text, _VERBS, build, (*COMMON, *_OWN))


def _report_it(study: SearchStudy, storage: Path, *, stdout: bool) -> int:
    from sweeps.core.run.search_launch import print_search_report

    return print_search_report(study, Launch(storage), stdout=stdout)


def _does(name: str) -> Callable[..., int]:
    """What ``sweeps.core.run.search_launch`` has by this name; imported when it is called, as that takes seconds."""

    def do(study: SearchStudy, storage: Path, **options: Any) -> int:  # noqa: ANN401 - fields of Launch
        status: int = getattr(importlib.import_module("sweeps.core.run.search_launch"), name)(
            study, Launch(storage, **options)
        )
        return status

    return do


_OWN = (
    click.option("--trials", type=click.IntRange(1), help="Trials in all; a search goes on where this is raised."),
    click.option("--seed", type=click.IntRange(0), help="Of all trainings and of the proposals."),
)

_VERBS = (
    Verb(
        RUN,
        "Run what is missing, write the report, print it. Exit status: 0, or 4 where trials failed, 130 where Ctrl-C "
        "or SIGTERM stopped it, 1 or 2 where it could not run.",
        _does("run_search_study"),
        (*RESOURCES, *RUNNING, TRACKING),
    ),
    Verb("plan", "Say what would run and what it would cost. Runs nothing.", _does("print_search_plan"), RESOURCES),
    Verb("status", "Say what is there, what runs and what failed.", _does("print_search_status")),
    Verb(
        "report",
        "Write the report of the search as it stands, and print it. Exit status: 0, or 4 where trials failed.",
        _report_it,
        (STDOUT,),
    ),
    Verb("sync", "Fill MLflow again from the run folders.", _does("sync_search"), (TRACKING,)),
)
