"""List recipes, methods, backbones, data and metrics."""

from __future__ import annotations

import ast

import click

from toco.code_digest import source_file
from toco.registry import available

PACKAGES = ("recipes", "methods", "backbones", "data", "metrics")


@click.command()
def command() -> None:
    """List recipes, methods, backbones, data and metrics."""
    for package in PACKAGES:
        click.echo(f"{package}:")
        for name in available(f"toco.{package}"):
            click.echo(f"  {name:<16} {_first_line(f'toco.{package}.{name}')}")


def _first_line(module: str) -> str:
    """Read the first line of a module's docstring from its source; an import may take seconds."""
    file = source_file(module)
    docstring = None if file is None else ast.get_docstring(ast.parse(file.read_bytes()))
    return (docstring or "").partition("\n")[0]
