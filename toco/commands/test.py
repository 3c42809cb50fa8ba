"""Test a run as in the paper's Table 2: multiple scales, mirror images and a dense CRF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toco.commands import _options

if TYPE_CHECKING:
    from toco.data import Split


@click.command()
@_options.run_dir
@_options.changes
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for predictions and scores.",
)
@click.option("--split", type=click.Choice(["train", "val"]), default="val", show_default=True)
@click.option(
    "--also-without-crf", is_flag=True, help="Also write and score the predictions before the CRF."
)
@_options.progress
def command(
    run_dir: Path,
    changes: tuple[str, ...],
    out: Path,
    split: Split,
    also_without_crf: bool,
    progress: bool,
) -> None:
    """Segment a split as in Table 2, and score it.

    As for Table 2 of the paper, the newest checkpoint of RUN_DIR segments every image at several
    scales, with mirror images and a CRF. --set inference.NAME=VALUE changes settings, as in
    inference.crf=null; --set data.val_list=test takes another list. Predictions are written one by
    one, as PNGs of class ids in OUT/predictions; images whose prediction is up to date are skipped.
    If the split has masks, the scores are written to OUT/scores.json. Under torchrun the processes
    share the images: torchrun --standalone --nproc-per-node 4 -m toco test RUN_DIR --out DIR
    """
    from toco.commands._trained import open_for_share, open_images
    from toco.files import printable, write_text
    from toco.official.expected import compare_with_table2
    from toco.predict.image_files import check_readable, large_enough
    from toco.predict.inference import least_side_px
    from toco.predict.split_predictions import open_predictions, predict_split, score_predictions

    # Trained method, settings and images.
    trained, shard = open_for_share(run_dir, changes)
    trained.check_decoder()
    progress = progress and shard.rank == 0
    device = trained.config.torch_device()
    config = trained.config.inference.resolved(device.type)
    if also_without_crf and config.crf is None:
        raise click.UsageError("--also-without-crf goes with a CRF, but inference.crf is null.")
    if config.crf is not None and config.crf.filter_name == "exact" and device.type == "cpu":
        click.echo(
            "The exact filter takes minutes per image on a CPU; inference.crf.filter_name=lattice "
            "takes seconds."
        )
    dataset, about = open_images(trained, split, shard)

    # Predictions.
    variants = {"": config}
    if also_without_crf:
        variants["_without_crf"] = config.model_copy(update={"crf": None})
    folders = {
        name: open_predictions(out / f"predictions{name}", dataset, variant, about)
        for name, variant in variants.items()
    }
    read = large_enough(dataset, least_side_px(trained.method, config))
    check_readable(read, folders.values(), shard, progress=progress)
    predict_split(
        trained.method,
        dataset,
        config,
        device,
        folders[""],
        without_crf=folders.get("_without_crf"),
        shard=shard,
        progress=progress,
    )
    missing = {index for folder in folders.values() for index in folder.missing()}
    if missing:
        click.echo(
            f"Process {shard.rank} is done; {len(missing)} images of other processes are not. The "
            "last process scores."
        )
        return

    # Scores.
    for name, variant in variants.items():
        scores = score_predictions(folders[name], dataset, variant, progress)
        if scores is None:
            click.echo(
                f"{len(dataset)} predictions: {printable(folders[name].path)}. There are no masks "
                "to score them by."
            )
            continue
        file = out / f"scores{name}.json"
        write_text(file, scores.to_json())
        click.echo(f"{scores.table()}\n{scores.protocol}")
        miou = scores.metrics["miou"]
        if authors_scores := compare_with_table2(
            miou, trained.recipe, split, trained.config, variant, scores.num_images, trained.step
        ):
            click.echo(authors_scores)
        click.echo(f"mIoU {100 * miou:.2f} %: {printable(file)}\n")
