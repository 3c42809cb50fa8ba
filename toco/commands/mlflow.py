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

    given = database_of(client_uri(storage)) if "://" in storage else Path(storage)
    if given is None:
        raise click.UsageError("A server shows its own pages: open its address in a browser.")
    database = given / "mlflow.db" if given.is_dir() or not given.suffix else given
    pages = experiment_pages(database, port)
    for experiment, page in pages.items():
        click.echo(f"{experiment}: {page}")
    if not pages:
        click.echo(f"{database} holds no run yet; what comes is shown at http://127.0.0.1:{port}")
    click.echo("The pages can be opened when the server has said that it runs. Ctrl-C ends it.")
    serve(database, port)
