"""Print the config of a recipe."""

from __future__ import annotations

import click

from toco.commands import _options
from toco.config import digest, parse_assignments, replace
from toco.registry import load


@click.command()
@click.argument("recipe")
@_options.changes
def command(recipe: str, changes: tuple[str, ...]) -> None:
    """Print the config of RECIPE as JSON.

    All defaults are included. A config that cannot run, because its sizes do not fit together, is
    refused.
    """
    from toco.train.dry_run import check_can_run

    base = load("toco.recipes", recipe).recipe()
    value = replace(base, parse_assignments(changes))
    check_can_run(value, base)
    click.echo(value.model_dump_json(indent=2))
    click.echo(f"digest {digest(value)}", err=True)
