"""Check and prepare data sets."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from toco.commands import _options
from toco.config import parse_assignments, replace
from toco.registry import load


@click.group()
def command() -> None:
    """Check and prepare data sets."""


@command.command()
@click.argument("root", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--train-list", default="train_aug", show_default=True, help="Name of the training list."
)
@click.option("--val-list", default="val", show_default=True, help="Name of the validation list.")
@click.option(
    "--labels",
    default="masks",
    show_default=True,
    help="masks, xml, or a csv, json or npz file in ROOT.",
)
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    help="File of class names; default: ROOT/classes.txt.",
)
@click.option("--mask-folder", help="Folder of masks in ROOT.")
@click.option("--allow-empty-labels", is_flag=True, help="Accept training images without a class.")
@click.option("--allow-overlap", is_flag=True, help="Accept images that are in both lists.")
def check(
    root: Path,
    train_list: str,
    val_list: str,
    labels: str,
    classes: Path | None,
    mask_folder: str | None,
    allow_empty_labels: bool,
    allow_overlap: bool,
) -> None:
    """Report every fault of a VOC-shaped folder.

    All images and masks of ROOT are decoded. Exits with 1 if there is a fault.
    """
    from toco.data import voc
    from toco.data.check import check_folder

    config = voc.Config(
        root=root,
        train_list=train_list,
        val_list=val_list,
        labels=labels,
        classes=classes,
        mask_folder=mask_folder,
        allow_empty_labels=allow_empty_labels,
        allow_overlap=allow_overlap,
    )
    report = check_folder(config, progress=True)
    click.echo(str(report))
    sys.exit(1 if report.faults else 0)


@command.command(name="check-set")
@click.argument("name")
@_options.changes
def check_set(name: str, changes: tuple[str, ...]) -> None:
    """Report every fault of the data set NAME.

    NAME is the kind of data set: coco, folder, ... All images and masks are decoded. Exits with 1
    if there is a fault. Settings are named as in a run, without "data.": data check-set folder
    --set root=tiles --set labels=folders
    """
    from toco.data.check import check_splits

    module = load("toco.data", name)
    config = replace(module.Config(), parse_assignments(changes))
    train, val = (module.open_split(config, split) for split in ("train", "val"))
    report = check_splits(train, val, allow_overlap=config.allow_overlap, progress=True)
    click.echo(str(report))
    sys.exit(1 if report.faults else 0)


@command.command(name="convert-labels")
@click.argument("source", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
def convert_labels_(source: Path, target: Path) -> None:
    """Convert the official pickled labels in SOURCE.

    TARGET is a .npz or .json file. No code of the pickle is executed.
    """
    from toco.data import convert_labels

    click.echo(f"{convert_labels(source, target)} labels written to {target}")


@command.command(name="prepare-coco")
@click.argument("root", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    help="Folder of the annotation files; default: ROOT/annotations.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write; default: ROOT/masks80."
)
@click.option(
    "--split",
    "splits",
    type=click.Choice(("train", "val")),
    multiple=True,
    default=("train", "val"),
)
@_options.progress
def prepare_coco(
    root: Path, annotations: Path | None, out: Path | None, splits: tuple[str, ...], progress: bool
) -> None:
    """Write labels and masks of COCO 2014 in ROOT.

    They are made from instances_train2014.json and instances_val2014.json. Masks have the classes 1
    to 80, and 255 (void) for crowds outside of objects; smaller objects lie over larger ones.
    Labels are the classes of all objects that are no crowds. Call the command again to continue
    stopped work.
    """
    from toco.data.coco_format.annotations import RULES, read_annotations
    from toco.data.files.layout import examples
    from toco.files import printable
    from toco.predict.output_folder import OutputFolder

    out = root / "masks80" if out is None else out
    for split in splits:
        part = f"{split}2014"
        file = (annotations or root / "annotations") / f"instances_{part}.json"
        content = read_annotations(file)
        names = [image.name for image in content.images]
        settings = {"annotations_sha256": content.sha256, "rules": RULES}
        # The annotations and the image's name determine a mask, so the name serves as input digest.
        try:
            folder = OutputFolder(out / part, settings, names, ".png", names.__getitem__)
        except ValueError as error:
            raise ValueError(
                f"The masks of {printable(file)} cannot be written: {error}"
            ) from error
        content.write_labels(out / f"labels_{part}.json")
        folder.fill(content.mask_png, task=part, progress=progress)
        click.echo(
            f"{part}: {len(names)} images with objects, {content.num_without_objects} without "
            f"objects are skipped; labels and masks are in {out}"
        )
        missing = [name for name in names if not (root / part / f"{name}.jpg").is_file()]
        if missing:
            click.echo(
                f"{root / part}: {len(missing)} of these images are missing: {examples(missing)}."
            )


@command.command(name="convert-coco-masks")
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("target", type=click.Path(path_type=Path, file_okay=False))
@_options.progress
def convert_coco_masks(source: Path, target: Path, progress: bool) -> None:
    """Renumber COCO masks from categories to the 80 classes.

    SOURCE has masks with COCO's categories (1 to 90); TARGET gets masks with the classes 1 to 80.
    """
    from toco.data.coco_format.masks import renumber
    from toco.data.files.tree import read_tree
    from toco.files import sha256
    from toco.predict.output_folder import OutputFolder

    tree = read_tree(source, (".png",))
    if not tree.names:
        raise ValueError(
            f"{source}: expected PNG masks in it or in folders below, but there is none."
        )
    paths = [source / f"{name}.png" for name in tree.names]
    about = {"converted_from": "COCO's categories"}
    folder = OutputFolder(target, about, tree.names, ".png", lambda index: sha256(paths[index]))
    folder.fill(lambda index: renumber(paths[index]), task="convert", progress=progress)
    for note in tree.notes():
        click.echo(f"note  {note}")
    click.echo(f"{len(paths)} masks written to {target}")
