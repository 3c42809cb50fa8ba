"""Evaluate a run as during training."""

from __future__ import annotations

from pathlib import Path

import click

from toco.commands import _options
from toco.config import parse_assignments
from toco.registry import load


@click.command()
@_options.run_dir
@_options.changes
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the evaluation and its pictures."
)
@_options.progress
def command(run_dir: Path, changes: tuple[str, ...], out: Path | None, progress: bool) -> None:
    """Evaluate the newest checkpoint of RUN_DIR.

    --set changes the run's config, as in evaluate.size_px=224. For a recipe of the paper, the
    authors' scores are printed as well.
    """
    from toco.evaluate.evaluator import evaluate as run
    from toco.evaluate.pictures import (
        draw_similarity_curve,
        draw_threshold_curve,
        save_figure,
        save_panels,
    )
    from toco.files import printable, write_text
    from toco.official.expected import compare_with_log
    from toco.train.trained import open_trained

    trained = open_trained(run_dir, parse_assignments(changes))
    value = trained.config
    val_set = load("toco.data", value.data.name).open_split(value.data, "val")
    device = value.torch_device()
    evaluation = run(
        trained.method, val_set, value.evaluate, device, progress=progress, step=trained.step
    )
    click.echo(evaluation.table())
    click.echo(evaluation.protocol)
    if authors_scores := compare_with_log(
        evaluation, trained.recipe, value, len(val_set), trained.step
    ):
        click.echo(
            "\nCompared with the last evaluation in the authors' log of "
            f"{trained.recipe}:\n{authors_scores}"
        )
    if out is not None:
        threshold, curve = value.evaluate.background_threshold, evaluation.threshold_curve
        write_text(out / "evaluation.json", evaluation.to_json())
        save_panels(evaluation.pictures, evaluation.class_names, threshold, out / "pictures")
        similarity = {run_dir.name: evaluation.patch_similarity}
        save_figure(lambda: draw_similarity_curve(similarity), out / "patch_similarity.png")
        save_figure(lambda: draw_threshold_curve(curve, threshold), out / "threshold_curve.png")
        click.echo(f"Written to {printable(out)}")
