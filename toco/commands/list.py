"""List what there is."""

from __future__ import annotations

import click

from toco.registry import available, load

PACKAGES = ("recipes", "methods", "backbones", "data", "metrics")


@click.command()
def command() -> None:
    """List recipes, methods, backbones, data and metrics."""
    for package in PACKAGES:
        click.echo(f"{package}:")
        for name in available(f"toco.{package}"):
            first_line = (load(f"toco.{package}", name).__doc__ or "").splitlines()[0]
            click.echo(f"  {name:<16} {first_line}")
