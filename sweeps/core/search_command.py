"""The command line of a search: the verbs and options of a study, as far as they mean something for it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sweeps.core.command import COMMON, RESOURCES, RUN, RUNNING, TRACKING, VerbGroup
from sweeps.core.options import Launch, checked_storage, default_storage
from sweeps.core.search import SearchStudy


def search_command(
    study: SearchStudy, text: str | None, adapt: Callable[[SearchStudy], SearchStudy] | None = None
) -> click.Group:
    """The verbs of a search; without a verb it runs.

    Args:
        study: The search as it is without options.
        text: Its help: the docstring of its file.
        adapt: Called with the search after its options; returns the one to use. For what depends on the recipe.
    """
    group = VerbGroup(study.name, help=text)
    for name, (description, do, options) in _VERBS.items():
        group.add_command(_command(name, description, do, options, study, adapt))
    return group


def _command(
    name: str,
    description: str,
    do: Callable[[SearchStudy, Launch], int],
    options: tuple[Callable[[Any], Any], ...],
    study: SearchStudy,
    adapt: Callable[[SearchStudy], SearchStudy] | None,
) -> click.Command:
    def command(
        *,
        recipe: str | None,
        data: Path | None,
        weights: Path | None,
        trials: int | None,
        seed: int | None,
        changes: dict[str, Any],
        storage: Path | None,
        **launch: Any,  # noqa: ANN401 - fields of Launch
    ) -> None:
        paths = {"data.root": data, "backbone.weights": weights}
        # Workers run in other folders.
        read = {path: str(value.expanduser().resolve()) for path, value in paths.items() if value is not None}
        try:
            where = checked_storage(storage or default_storage())
            built = dataclasses.replace(
                study,
                recipe=recipe or study.recipe,
                num_trials=study.num_trials if trials is None else trials,
                seed=study.seed if seed is None else seed,
                changes={**study.changes, **changes, **read},
            )
            status = do(adapt(built) if adapt else built, Launch(where, **launch))
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
        sys.exit(status)

    made: Any = command
    for option in reversed((*COMMON, *_OWN, *options)):
        made = option(made)
    return click.command(name, help=description)(made)


def _run(study: SearchStudy, launch: Launch) -> int:
    from sweeps.core.search_launch import run_search_study

    return run_search_study(study, launch)


def _plan(study: SearchStudy, launch: Launch) -> int:
    from sweeps.core.search_launch import print_search_plan

    return print_search_plan(study, launch)


def _status(study: SearchStudy, launch: Launch) -> int:
    from sweeps.core.search_launch import print_search_status

    return print_search_status(study, launch)


def _report(study: SearchStudy, launch: Launch) -> int:
    from sweeps.core.search_launch import print_search_report

    return print_search_report(study, launch)


def _sync(study: SearchStudy, launch: Launch) -> int:
    from sweeps.core.search_launch import sync_search

    return sync_search(study, launch)


_OWN = (
    click.option("--trials", type=click.IntRange(1), help="Trials in all; a search goes on where this is raised."),
    click.option("--seed", type=click.IntRange(0), help="Of all trainings and of the proposals."),
)

_VERBS: dict[str, tuple[str, Callable[[SearchStudy, Launch], int], tuple[Callable[[Any], Any], ...]]] = {
    RUN: (
        "Run what is missing, write the report, print it. Exit status: 0, or 4 where trials failed, 130 where it was "
        "stopped, 1 or 2 where it could not run.",
        _run,
        (*RESOURCES, *RUNNING, TRACKING),
    ),
    "plan": ("Say what would run and what it would cost. Runs nothing.", _plan, RESOURCES),
    "status": ("Say what is there, what runs and what failed.", _status, ()),
    "report": ("Write the report of the search as it stands, and print it.", _report, ()),
    "sync": ("Fill MLflow again from the run folders.", _sync, (TRACKING,)),
}
