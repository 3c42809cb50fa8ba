"""Record run folders in MLflow."""

from __future__ import annotations

from pathlib import Path

import click

from toco.commands import _options


@click.command()
@click.argument("run_dirs", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@_options.tracking_uri
@_options.experiment
def command(run_dirs: tuple[Path, ...], tracking_uri: str, experiment: str) -> None:
    """Record run folders in MLflow.

    Data that MLflow already has is not written again. User name and password of a server are read
    from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """
    from toco.tracking import open_store, read_run_record, track_run

    for run_dir in run_dirs:
        read_run_record(run_dir)  # refuse invalid folders before a store is created
    store = open_store(tracking_uri, experiment)
    for run_dir in run_dirs:
        run_id = track_run(run_dir, store)
        click.echo(f"{run_dir} is MLflow run {run_id}: {store.pages.run(run_id)}")
