"""Start the MLflow UI on this machine for a results folder."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("storage", default="results")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def command(storage: str, port: int) -> None:
    """Start the MLflow UI for STORAGE, on this machine.

    STORAGE is one of three: the folder that a study has as --storage, which contains mlflow.db; a
    database file; or a database's address, sqlite:///PATH. The default is ./results. The address of
    every experiment is printed. Ctrl-C ends the server.
    """
    from toco.tracking import client_uri, database_of
    from toco.tracking.ui import experiment_pages, serve

    path = database_of(client_uri(storage)) if "://" in storage else Path(storage)
    if path is None:
        raise click.UsageError(
            "STORAGE is the address of an MLflow server, which has its own UI: open that address "
            "in a browser."
        )
    database = path / "mlflow.db" if path.is_dir() or not path.suffix else path
    pages = experiment_pages(database, port)
    for experiment, page in pages.items():
        click.echo(f"{experiment}: {page}")
    if not pages:
        click.echo(f"{database} has no run yet; new runs appear at http://127.0.0.1:{port}")
    click.echo("Open the pages when the server reports that it is running. Ctrl-C ends it.")
    serve(database, port)
