"""Export a run as a checkpoint for the official code."""

from __future__ import annotations

from pathlib import Path

import click

from toco.commands import _options


@click.command()
@_options.run_dir
@click.argument("file", type=click.Path(path_type=Path))
def command(run_dir: Path, file: Path) -> None:
    """Write a checkpoint for the official ToCo code.

    FILE gets the newest checkpoint of RUN_DIR in the format of that code.
    """
    from toco.official.checkpoint import export_checkpoint

    count = export_checkpoint(run_dir, file)
    click.echo(f"{count} tensors by their official names; the unused encoder.head is zeros: {file}")
