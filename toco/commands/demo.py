"""Serve a page with the CAMs and predictions of a run for any image."""

from __future__ import annotations

import secrets
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toco.commands import _options
from toco.config import parse_assignments
from toco.registry import load

if TYPE_CHECKING:
    from toco.data import Dataset
    from toco.train.run_config import RunConfig


@click.command()
@_options.run_dir
@_options.changes
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7860,
    show_default=True,
    help="Port of the server; 0 chooses a free one.",
)
@click.option(
    "--open/--no-open",
    "open_page",
    default=False,
    show_default=True,
    help="Open the page in the browser.",
)
@click.option(
    "--max-side-px",
    type=click.IntRange(min=16),
    default=640,
    show_default=True,
    help="Shrink longer images to this side first.",
)
@click.option(
    "--max-upload-mib",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Refuse larger files.",
)
@click.option(
    "--max-pixels", type=click.IntRange(min=1), help="Refuse larger images.  [default: 50000000]"
)
def command(
    run_dir: Path,
    changes: tuple[str, ...],
    port: int,
    open_page: bool,
    max_side_px: int,
    max_upload_mib: int,
    max_pixels: int | None,
) -> None:
    """Serve a page with the CAMs and predictions of a run.

    The page shows CAM, auxiliary CAM, pseudo labels at any two thresholds, segmentation, and the
    similarity of patches after every block. It uses the newest checkpoint of RUN_DIR and the
    settings of the run's evaluation, which --set changes, as in evaluate.size_px=224. The server
    only listens on this machine (loopback).
    """
    from toco.data.files.images import MAX_PIXELS
    from toco.demo.analysis import Analyst
    from toco.demo.limits import Limits
    from toco.demo.server import HOST, Demo, listen, serve
    from toco.train.trained import open_trained

    limits = Limits(
        upload_bytes=max_upload_mib * 2**20, pixels=MAX_PIXELS if max_pixels is None else max_pixels
    )
    with listen(port) as listening:
        trained = open_trained(run_dir, parse_assignments(changes))
        token = secrets.token_urlsafe(24)
        examples = _val_images(trained.config)
        demo = Demo(Analyst(trained, max_side_px), run_dir.resolve().name, token, examples, limits)
        address = f"http://{HOST}:{listening.getsockname()[1]}/?token={token}"
        click.echo(f"{address}  (Ctrl-C ends it)")
        if open_page:
            webbrowser.open(address)
        serve(demo, listening)


def _val_images(config: RunConfig) -> Dataset | None:
    """Open the validation images as examples; ``None`` if the data set cannot be opened."""
    try:
        # Images are read one by one: filling a cache would decode all of them.
        data = config.data.model_copy(update={"cache": "none"})
        dataset: Dataset = load("toco.data", data.name).open_split(data, "val")
    except (ValueError, OSError) as error:
        click.echo(
            f"No examples are offered, since the run's data set cannot be opened: {error}", err=True
        )
        return None
    return dataset
