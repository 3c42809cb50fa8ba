"""Fill MLflow from run folders."""

from __future__ import annotations

from pathlib import Path

import click

from toco.commands import _options


@click.command()
@click.argument("run_dirs", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@_options.tracking_uri
@_options.experiment
def command(run_dirs: tuple[Path, ...], tracking_uri: str, experiment: str) -> None:
    """Fill MLflow from run folders.

    What is there already is not written twice. User name and password of a server come from
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """
    from toco.tracking import open_store, read_run_record, track_run

    for run_dir in run_dirs:
        read_run_record(run_dir)  # refused before a store is made
    store = open_store(tracking_uri, experiment)
    for run_dir in run_dirs:
        run_id = track_run(run_dir, store)
        click.echo(f"{run_dir} is MLflow run {run_id}: {store.pages.run(run_id)}")
