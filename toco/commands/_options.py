"""Options that several verbs share."""

from pathlib import Path

import click

changes = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="a.b=VALUE",
    help="Change a setting by its dotted path; repeatable.",
)
experiment = click.option(
    "--experiment", default="toco", show_default=True, help="Experiment of the run."
)
labelled_split = click.option(
    "--split", type=click.Choice(["train", "val"]), default="train", show_default=True
)
"""Split whose image-level labels are used; by default the one for training a second stage."""
out = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the outputs."
)
progress = click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
run_dir = click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
"""Run folder, made by ``train`` or ``import-official``."""
tracking_uri = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="sqlite:///results/mlflow.db",
    show_default=True,
    help="An MLflow store: sqlite:///PATH or http://HOST:PORT.",
)
