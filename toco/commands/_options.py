"""Options that several verbs take."""

from __future__ import annotations

from pathlib import Path

import click

changes = click.option(
    "--set", "changes", multiple=True, metavar="a.b=VALUE", help="Change a setting by its dotted path; repeatable."
)
progress = click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
run_dir = click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
"""A run folder, as ``train`` and ``import-official`` make it."""
