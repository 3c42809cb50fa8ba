"""Check data sets and convert labels."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from tqdm import tqdm


@click.group()
def command() -> None:
    """Check data sets and convert labels."""


@command.command()
@click.argument("root", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--train-list", default="train_aug", show_default=True, help="Name of the training list.")
@click.option("--val-list", default="val", show_default=True, help="Name of the validation list.")
@click.option("--labels", default="masks", show_default=True, help="masks, xml, or a csv, json or npz file in ROOT.")
@click.option("--classes", type=click.Path(path_type=Path), help="File of class names; default: ROOT/classes.txt.")
@click.option("--mask-folder", help="Folder of masks in ROOT.")
@click.option("--allow-empty-labels", is_flag=True, help="Take training images that show no class.")
def check(
    root: Path,
    train_list: str,
    val_list: str,
    labels: str,
    classes: Path | None,
    mask_folder: str | None,
    allow_empty_labels: bool,
) -> None:
    """Decode all of the VOC-shaped folder ROOT and report every fault; exits with 1 if there is one."""
    from toco.data import check_folder

    with tqdm(unit="image", leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = check_folder(
            root,
            train_list=train_list,
            val_list=val_list,
            labels=Path(labels) if labels not in ("masks", "xml") else labels,  # type: ignore[arg-type]
            classes=classes,
            mask_folder=mask_folder,
            allow_empty_labels=allow_empty_labels,
            on_progress=show,
        )
    click.echo(str(report))
    sys.exit(1 if report.faults else 0)


@command.command(name="convert-labels")
@click.argument("source", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
def convert_labels_(source: Path, target: Path) -> None:
    """Convert the official pickled labels in SOURCE to TARGET (.npz or .json), running nothing that it holds."""
    from toco.data import convert_labels

    click.echo(f"{convert_labels(source, target)} labels written to {target}")
