"""Pretrain the nano ViT."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from toco.commands import _options
from toco.config import parse_assignments, replace


@click.command()
@click.argument("weights", type=click.Path(path_type=Path, dir_okay=False))
@_options.changes
@_options.progress
def command(weights: Path, changes: tuple[str, ...], progress: bool) -> None:
    """Pretrain the nano ViT on generated scenes.

    Writes WEIGHTS (.safetensors), and beside it a JSON file of the same name with the settings and
    results.
    """
    # Imported late: torch takes seconds, and ``--help`` does not need it.
    from toco.train.pretrain import PretrainConfig
    from toco.train.pretrain import pretrain as run

    # Without the folder: it differs between machines and does not affect the weights.
    parts = ["python", "-m", "toco", "pretrain", weights.name]
    for change in changes:
        parts += ["--set", change]
    result = run(
        replace(PretrainConfig(), parse_assignments(changes)),
        weights,
        command=shlex.join(parts),
        progress=progress,
    )
    similarity = ", ".join(f"{value:.2f}" for value in result.patch_similarity)
    click.echo(
        f"{weights}: label accuracy {result.label_accuracy:.3f}; patch similarity by block "
        f"{similarity}"
    )
