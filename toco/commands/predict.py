"""Segment images with a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toco.commands import _options

if TYPE_CHECKING:
    from toco.data import Split


@click.command()
@_options.run_dir
@click.argument("inputs", metavar="[INPUT]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "val"]),
    help="Segment a split of the run's data instead of INPUT.",
)
@_options.out
@click.option(
    "--overlay",
    is_flag=True,
    help="Also paint the classes over the images, with a legend: OUT/overlays.",
)
@click.option(
    "--soft", is_flag=True, help="Also keep the class probabilities, float16: OUT/probabilities."
)
@click.option(
    "--coco-json", is_flag=True, help="Also write all labels as COCO annotations: OUT/coco.json."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    help="Refuse larger INPUT images.  [default: 50000000]",
)
@_options.changes
@_options.progress
def command(
    run_dir: Path,
    inputs: tuple[Path, ...],
    split: Split | None,
    out: Path,
    overlay: bool,
    soft: bool,
    coco_json: bool,
    max_pixels: int | None,
    changes: tuple[str, ...],
    progress: bool,
) -> None:
    """Segment any images.

    INPUT are JPEG and PNG files, folders of them, and links. Images are rotated by their EXIF
    orientation and segmented with the newest checkpoint of RUN_DIR. OUT/labels gets an index PNG
    for each image, in VOC's palette. --set changes settings, as in inference.crf=null (no CRF,
    faster), 'inference.scales=[1]' or inference.tile_px=1024 (large images). Stopped work continues
    when the command is called again, and changed images are segmented again; torchrun shares the
    work among processes. Exits with 1 if an image cannot be segmented; the others still are.
    """
    import sys
    from functools import partial

    from toco.commands._trained import identity, open_for_share, open_images
    from toco.data.files.images import MAX_PIXELS
    from toco.files import printable
    from toco.predict.image_files import Images, find_images
    from toco.predict.inference import class_probabilities, least_side_px
    from toco.predict.predictions import predict

    if bool(inputs) == bool(split):
        raise click.UsageError(
            "Name the images: either as INPUT, or with --split as those of the run's data."
        )
    if split and max_pixels is not None:
        raise click.UsageError(
            "--max-pixels goes with INPUT; for a split it is --set data.max_pixels=NUMBER."
        )

    # Input files, which must not mix with outputs.
    images: Images
    if inputs:
        if any(out.resolve().is_relative_to(path.resolve()) for path in inputs):
            raise click.UsageError(
                f"--out {out} lies in a folder of INPUT and would add images to it; name another "
                "folder."
            )
        images = files = find_images(inputs, MAX_PIXELS if max_pixels is None else max_pixels)
        file_names = files.file_names
        if out.is_dir() and any(
            path.resolve().is_relative_to(out.resolve()) for path in files.paths
        ):
            raise click.UsageError(f"--out {out} has images of INPUT; name another folder.")

    # Trained method, settings and identity of the outputs.
    trained, shard = open_for_share(run_dir, changes)
    trained.check_decoder()
    if inputs and shard.rank == 0:
        for phrase in files.left_out:
            click.echo(f"Left out: {phrase}.")
    device = trained.config.torch_device()
    inference = trained.config.inference.resolved(device.type)
    about = identity(trained)
    if split:
        images, about = open_images(trained, split, shard)
        file_names = images.names
    about["inference"] = inference.model_dump(mode="json")

    # Segmentation.
    network = partial(class_probabilities, trained.method, config=inference, device=device)
    predicted = predict(
        network,
        images,
        trained.class_names,
        out,
        about,
        shard,
        overlay=overlay,
        soft=soft,
        coco_json=file_names if coco_json else None,
        least_side_px=least_side_px(trained.method, inference),
        progress=progress and shard.rank == 0,
    )

    # Report.
    labels, faults = predicted.labels, predicted.faults
    num_images = len(labels.names)
    num_labels = num_images - len(labels.missing())
    click.echo(
        f"{num_labels} of {num_images} images have a label: {printable(labels.path)} "
        f"({predicted.num_made} made now)"
    )
    if coco_json and not predicted.is_complete:
        click.echo(f"{printable(out / 'coco.json')} is written by the last process.")
    if faults:
        click.echo(f"{len(faults)} of {num_images} images cannot be segmented:", err=True)
        for sentence in faults.values():
            click.echo(f"  {printable(sentence)}", err=True)
    if faults and predicted.is_complete:
        sys.exit(1)  # only when all are done: torchrun ends all processes if one fails
