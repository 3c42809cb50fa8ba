"""Fill MLflow from run folders."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run_dirs", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="sqlite:///results/mlflow.db",
    show_default=True,
    help="An MLflow store: sqlite:///PATH or http://HOST:PORT.",
)
@click.option("--experiment", default="toco", show_default=True)
def command(run_dirs: tuple[Path, ...], tracking_uri: str, experiment: str) -> None:
    """Fill MLflow from run folders; what is there already is not written twice."""
    from toco.tracking import track_run

    for run_dir in run_dirs:
        run_id = track_run(run_dir, tracking_uri=tracking_uri, experiment=experiment)
        click.echo(f"{run_dir} is MLflow run {run_id}")
