"""Make a run folder from a checkpoint of the official code."""

from __future__ import annotations

from pathlib import Path

import click

from toco.commands import _options
from toco.config import parse_assignments, replace
from toco.registry import load


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--recipe", required=True, help="Recipe of its training, such as voc_deit_b.")
@_options.changes
@click.option(
    "--run-dir", type=click.Path(path_type=Path), required=True, help="Run folder to make."
)
@click.option(
    "--step",
    type=click.IntRange(min=0),
    help="Number of updates at which it was saved; default: all of the recipe.",
)
def command(
    file: Path, recipe: str, changes: tuple[str, ...], run_dir: Path, step: int | None
) -> None:
    """Make a run folder from an official checkpoint.

    FILE was saved by the official ToCo code. All verbs for trained runs accept the run folder:
    evaluate, predict, test. Its training cannot be continued.
    """
    from toco.official.checkpoint import import_checkpoint

    value = replace(load("toco.recipes", recipe).recipe(), parse_assignments(changes))
    step = value.num_steps if step is None else step
    count = import_checkpoint(file, run_dir, value, recipe, step)
    click.echo(f"{count} tensors of {file}, as the run of {recipe} after step {step}: {run_dir}")
