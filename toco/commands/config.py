"""Print a config."""

from __future__ import annotations

import click

from toco.commands import _options
from toco.config import digest, parse_assignments, replace
from toco.registry import load


@click.command()
@click.argument("recipe")
@_options.changes
def command(recipe: str, changes: tuple[str, ...]) -> None:
    """Print the config of RECIPE, defaults too, as JSON."""
    value = replace(load("toco.recipes", recipe).recipe(), parse_assignments(changes))
    click.echo(value.model_dump_json(indent=2))
    click.echo(f"digest {digest(value)}", err=True)
