"""Export the network of a run for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from toco.commands import _options


@click.command()
@_options.run_dir
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--size",
    "size_px",
    type=int,
    help="Accept only square images of this side in pixels.  [default: any height and width]",
)
@click.option(
    "--cams",
    is_flag=True,
    help="Also output class activation maps and image-level class scores.",
)
def command(run_dir: Path, file: Path, size_px: int | None, cams: bool) -> None:
    """Write the network of RUN_DIR to FILE.onnx.

    It has the weights of the newest checkpoint; its input is RGB levels, its outputs are scores and
    labels. The file documents its inputs, outputs and classes. It is checked in ONNX Runtime before
    it is written.
    """
    from toco.export.onnx import export_onnx

    exported = export_onnx(run_dir, file, size_px=size_px, cams=cams)
    click.echo(
        f"{file}: {exported.size_bytes / 1e6:.1f} MB. ONNX Runtime against torch: scores differ by "
        f"at most {exported.max_difference:.2g} (the largest is {exported.max_score:.3g}), "
        f"{exported.label_agreement:.2%} of the labels agree."
    )
    for key, value in exported.metadata.items():
        click.echo(f"  {key} = {value}")
