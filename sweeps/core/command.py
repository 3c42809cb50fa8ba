"""What the command lines of all studies share: options for where and how, and errors as sentences."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from sweeps.core.launch import Launch, default_storage, run_study
from sweeps.core.study import Study
from toco.config import parse_assignments


def integers(_context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Read ``0,1,2``; a click callback."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected integers with commas between them, as in 0,1,2; got {text!r}") from None


def assignments(_context: click.Context, _option: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    """Read ``a.b=value`` given several times; a click callback."""
    try:
        return parse_assignments(texts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def study_options(function: Callable[..., Study]) -> Callable[..., None]:
    """Options that every study has, around a function that makes the study from the others.

    ``function`` gets ``recipe``, ``data``, ``seeds`` and ``changes`` besides its own options.
    """

    @functools.wraps(function)
    def command(
        *,
        storage: Path | None,
        tracking_uri: str | None,
        address: str | None,
        concurrent: int,
        cpus_per_trial: float,
        gpus_per_trial: float,
        max_failures: int,
        data: Path | None,
        changes: dict[str, Any],
        **own: Any,  # noqa: ANN401 - the study's own options
    ) -> None:
        launch = Launch(
            storage or default_storage(),
            tracking_uri,
            address,
            concurrent,
            cpus_per_trial,
            gpus_per_trial,
            max_failures,
        )
        if data is not None:
            # Workers run in other folders.
            changes = {**changes, "data.root": str(data.expanduser().resolve())}
        try:
            finished = run_study(function(changes=changes, **own), launch)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
        sys.exit(0 if finished else 1)

    options = [
        click.option("--recipe", default="shapes_nano", show_default=True, help="What every training starts from."),
        click.option(
            "--data",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Folder of the data set (data.root).",
        ),
        click.option("--seeds", default="0,1,2", show_default=True, callback=integers, help="A row is their mean."),
        click.option("--set", "changes", multiple=True, callback=assignments, help="Set a field in all: a.b=value."),
        click.option("--concurrent", default=2, show_default=True, type=click.IntRange(1), help="Trainings at once."),
        click.option("--cpus-per-trial", default=1.0, show_default=True, type=click.FloatRange(0)),
        click.option("--gpus-per-trial", default=0.0, show_default=True, type=click.FloatRange(0)),
        click.option("--max-failures", default=3, show_default=True, help="Restarts of one training; -1: any number."),
        click.option(
            "--storage",
            type=click.Path(path_type=Path),
            help="Folder of studies, seen by all nodes. [default: ./results; in a Ray job ~/toco-results]",
        ),
        click.option("--tracking-uri", help="MLflow store. [default: sqlite:///STORAGE/mlflow.db]"),
        click.option("--address", help="Ray cluster: HOST:PORT or auto. [default: RAY_ADDRESS, else a new local one]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command
