"""Log the network of a run to MLflow, and optionally register it under a name."""

from __future__ import annotations

from pathlib import Path

import click

from toco.commands import _options


@click.command()
@_options.run_dir
@click.option(
    "--name", help="Make a new version of this registered model.  [default: logged, not registered]"
)
@_options.tracking_uri
@_options.experiment
def command(run_dir: Path, name: str | None, tracking_uri: str, experiment: str) -> None:
    """Log the network of a run to MLflow, as a model.

    The model has the weights of RUN_DIR's newest checkpoint. Its input is encoded images, its
    output label maps; loading and serving it needs neither toco nor torch. The run is also recorded
    in MLflow, as `track` does.
    """
    import tempfile

    from toco.export.onnx import export_onnx
    from toco.tracking import client_uri, open_store, track_run
    from toco.tracking.model import log_network

    client_uri(tracking_uri)  # refuse an invalid address before the export
    with tempfile.TemporaryDirectory() as scratch:
        exported = export_onnx(run_dir, Path(scratch) / "network.onnx")
        store = open_store(tracking_uri, experiment)
        run_id = track_run(run_dir, store)
        network = log_network(store, run_id, exported.path, exported.metadata, exported.step, name)
    click.echo(
        f"{run_dir} is MLflow run {run_id}, {store.pages.run(run_id)}; its network is {network}"
    )
