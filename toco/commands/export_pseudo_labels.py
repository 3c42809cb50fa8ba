"""Export pseudo labels of a run as masks for a second training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toco.commands import _options

if TYPE_CHECKING:
    from toco.data import Split


@click.command()
@_options.run_dir
@_options.labelled_split
@_options.out
@click.option(
    "--refine",
    type=click.Choice(["none", "par", "crf", "par+crf"]),
    default="par",
    show_default=True,
    help="Refinement of the CAM; the decoder is trained with par.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help=(
        "Single background score, so that no pixel is uncertain.  [default: method.low_threshold "
        "and .high_threshold]"
    ),
)
@click.option(
    "--crf",
    "crf_changes",
    multiple=True,
    metavar="NAME=VALUE",
    help=(
        "Change a setting of the CRF, as in bilateral_sigma_xy=50; repeatable.  [default: the "
        "official ones for CAMs]"
    ),
)
@_options.changes
@_options.progress
def command(
    run_dir: Path,
    split: Split,
    out: Path,
    refine: str,
    threshold: float | None,
    crf_changes: tuple[str, ...],
    changes: tuple[str, ...],
    progress: bool,
) -> None:
    """Write the pseudo labels of a split as index PNGs.

    The PNGs have VOC's palette: 0 background, 1 and up classes, 255 uncertain. They are made with
    the newest checkpoint of RUN_DIR from the final CAM, as in the run's evaluation, and the
    image-level labels of the data. If the data has masks, the mIoU is printed at the end. --set
    changes settings, as in method.high_threshold=0.6 or evaluate.size_px=null. Stopped work
    continues when the command is called again; torchrun shares it among processes.
    """
    from toco.commands._trained import open_for_share, open_images
    from toco.config import parse_assignments, replace
    from toco.predict.pseudo_labels import (
        OFFICIAL_CAM_CRF,
        PseudoLabelConfig,
        export_pseudo_labels,
        score_pseudo_labels,
    )

    # Conversion of CAMs to labels.
    if crf_changes and "crf" not in refine:
        raise click.UsageError(f"--crf changes a CRF, but --refine {refine} has none.")
    crf = (
        replace(OFFICIAL_CAM_CRF, dict(parse_assignments(crf_changes))) if "crf" in refine else None
    )
    trained, shard = open_for_share(run_dir, changes)
    rule, device = trained.config.method.label_rule(), trained.config.torch_device()
    config = PseudoLabelConfig(
        low_threshold=rule.low_threshold if threshold is None else threshold,
        high_threshold=rule.high_threshold if threshold is None else threshold,
        par=rule.par if "par" in refine else None,
        crf=None if crf is None else crf.resolved(device.type),
    )

    # Pseudo labels.
    dataset, about = open_images(trained, split, shard)
    folder = export_pseudo_labels(
        trained.method,
        dataset,
        trained.config.evaluate,
        config,
        out,
        about,
        shard,
        device=device,
        progress=progress and shard.rank == 0,
    )

    # Score, by the process that finishes last.
    missing = len(folder.missing())
    click.echo(f"{len(dataset) - missing} of {len(dataset)} images have a pseudo label: {out}")
    if (
        not missing
        and (scores := score_pseudo_labels(folder, dataset, progress=progress)) is not None
    ):
        click.echo(scores)
