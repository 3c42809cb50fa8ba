"""Make the pictures of the README: python docs/make_pictures.py STORAGE, or make pictures.

STORAGE holds the finished study ``table5``. Two more trainings of half a minute, with and without
patch token contrast (PTC), go below STORAGE/pictures; finished ones are not repeated. Chromium
draws the pages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from playwright.sync_api import Page, ViewportSize

from benchmarks._chromium import chromium
from toco.evaluate.pictures import PANELS

FOLDER = Path(__file__).parent / "pictures"
RECIPE = "shapes_nano"
IMAGES = ("val_00150", "val_00299")
RUNS = {"with_ptc": (), "without_ptc": ("--set", "method.ptc.weight=0")}
COLUMNS = {
    "image": ("with_ptc", "image"),
    "CAM without PTC": ("without_ptc", "cam"),
    "CAM with PTC": ("with_ptc", "cam"),
    "pseudo label": ("with_ptc", "pseudo_label"),
    "segmentation": ("with_ptc", "prediction"),
    "ground truth": ("with_ptc", "mask"),
}
"""Title of each column of the strip: the run and the panel it is cut from."""
PAGE_PX = ViewportSize(width=1280, height=860)
COLOURS = 256
"""Of a written PNG: few enough that the repository stays small, and more than the eye misses."""


def train_runs(storage: Path) -> dict[str, Path]:
    """The run folders by name; a run that has no result is trained or resumed."""
    folders = {}
    for name, changes in RUNS.items():
        folders[name] = storage / "pictures" / name
        if not (folders[name] / "result.json").exists():
            resume = ("--resume",) if folders[name].exists() else ()
            options = ("--run-dir", str(folders[name]), *changes, *resume)
            subprocess.run(  # noqa: S603 - our own command
                (sys.executable, "-m", "toco", "train", RECIPE, *options), check=True
            )
    return folders


def draw_strip(runs: dict[str, Path], path: Path) -> None:
    """Set panels of the runs' last pictures side by side: a row for each image."""
    figure = Figure(figsize=(2 * len(COLUMNS), 2 * len(IMAGES) + 0.3), dpi=100)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", h_pad=0.02, w_pad=0.02)
    for row, image in zip(figure.subplots(len(IMAGES), len(COLUMNS)), IMAGES, strict=True):
        for axes, (title, (run, panel)) in zip(row, COLUMNS.items(), strict=True):
            axes.imshow(_read_panel(runs[run], image, panel))
            axes.set_axis_off()
            if image == IMAGES[0]:
                axes.set_title(title)
    figure.savefig(path)


def _read_panel(run: Path, image: str, panel: str) -> Image.Image:
    """One panel of the newest picture of ``image`` in a run folder."""
    newest = max(run.glob(f"pictures/*/{image}.png"))
    with Image.open(newest) as picture:
        box = json.loads(picture.text[PANELS])[panel]  # type: ignore[attr-defined]
        return picture.convert("RGB").crop(box)


def photograph_report(page: Page, storage: Path, path: Path) -> None:
    """The first screen of the report of ``table5``.

    Raises:
        ValueError: The storage has no report of it.
    """
    reports = sorted(storage.glob("table5*/report.html"))
    if not reports:
        raise ValueError(
            f"Expected the report of table5 below {storage}, and found none. "
            "Run make reproduce-table5 first."
        )
    page.goto(reports[-1].resolve().as_uri())
    page.screenshot(path=path)


def photograph_demo(page: Page, run: Path, path: Path) -> None:
    """The demo with an image of the validation split, and the similarity to a patch."""
    with _serve_demo(run) as address:
        page.goto(address)
        page.locator("#examples button").nth(1).click()
        canvas = page.locator("canvas#image")
        canvas.wait_for(state="visible")
        page.wait_for_load_state("networkidle")
        canvas.click()
        page.wait_for_load_state("networkidle")
        page.screenshot(path=path)


@contextmanager
def _serve_demo(run: Path) -> Iterator[str]:
    """The address of a demo that ends with the context."""
    command = (sys.executable, "-m", "toco", "demo", str(run), "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


def shrink(path: Path) -> None:
    """Write a PNG again with a palette of its own."""
    with Image.open(path) as picture:
        reduced = picture.convert("RGB").quantize(COLOURS)
    reduced.save(path, optimize=True)


@click.command(help=__doc__)
@click.argument("storage", type=click.Path(file_okay=False, exists=True, path_type=Path))
def main(storage: Path) -> None:
    """Make the three pictures."""
    FOLDER.mkdir(exist_ok=True)
    runs = train_runs(storage)
    draw_strip(runs, FOLDER / "strip.png")
    with chromium() as browser:
        page = browser.new_page(viewport=PAGE_PX)
        photograph_report(page, storage, FOLDER / "report.png")
        photograph_demo(page, runs["with_ptc"], FOLDER / "demo.png")
    for picture in sorted(FOLDER.glob("*.png")):
        shrink(picture)
        click.echo(f"{picture}: {picture.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
