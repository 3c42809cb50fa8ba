"""Export the CAMs of a run for a second stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from toco.commands import _options

if TYPE_CHECKING:
    from toco.data import Split


@click.command()
@_options.run_dir
@_options.labelled_split
@_options.out
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True
)
@_options.changes
@_options.progress
def command(
    run_dir: Path,
    split: Split,
    out: Path,
    dtype: Literal["float32", "float16"],
    changes: tuple[str, ...],
    progress: bool,
) -> None:
    """Write the CAMs of a split, one NPZ file per image.

    CAMs are made with the newest checkpoint of RUN_DIR and the image-level labels of the data. The
    arrays have IRN's names: keys (classes of the image, from 0), high_res (CAMs at the image's
    size), cam (CAMs at a quarter of it), and the same for further CAMs of the method, as
    aux_high_res and aux_cam. The settings are those of the run's evaluation; --set changes them, as
    in evaluate.size_px=null for the image's own size. Stopped work continues when the command is
    called again; torchrun shares it among processes.
    """
    from toco.commands._trained import open_for_share, open_images
    from toco.predict.cams import export_cams

    trained, shard = open_for_share(run_dir, changes)
    dataset, about = open_images(trained, split, shard)
    folder = export_cams(
        trained.method,
        dataset,
        trained.config.evaluate,
        out,
        about,
        shard,
        device=trained.config.torch_device(),
        dtype=dtype,
        progress=progress and shard.rank == 0,
    )
    click.echo(f"{len(dataset) - len(folder.missing())} of {len(dataset)} images have CAMs: {out}")
