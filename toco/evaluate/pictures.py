"""Figures of an evaluation: panels of images, curves over thresholds and blocks.

Figures are made without pyplot, whose global state would leak one figure per picture and is not
safe in threads. Names of images, classes and runs are drawn literally. Otherwise Matplotlib would
read text between two ``$`` as mathematics.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.patches import Patch

from toco.evaluate.report import Picture, ThresholdCurve, title_of
from toco.files import printable, whole_file
from toco.types import IGNORE_INDEX

logger = logging.getLogger(__name__)

_CAM_COLOURS = "viridis"  # perceptually uniform, and readable without colour vision
_CAM_OPACITY = 0.65  # the grey image shows through
_PANEL_INCHES, _DPI = 2.1, 110  # 231 px a panel: six beside each other fit on a screen
# About as many names as fit below the four panels of the narrowest picture.
_CLASSES_IN_A_LEGEND_ROW = 7
_LABEL_TITLES = {"pseudo_label": "pseudo label", "prediction": "prediction", "mask": "ground truth"}
PANELS = "toco.panels"
"""Key of a text in the PNG: JSON with ``[left, top, right, bottom]`` of each panel, in pixels."""
_LONGEST_STEM = 200
"""Longest part of an image's name in a file's name, in characters; file systems allow 255 bytes."""


def voc_palette(num_colours: int = 256) -> UInt8[np.ndarray, "num_colours 3"]:
    """Compute the colours of PASCAL VOC's classes.

    The bits of the index, lowest first, become bits of red, green and blue in turn, highest first.

    >>> voc_palette()[[0, 1, 15, 255]].tolist()
    [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    palette = np.zeros((num_colours, 3), dtype=np.uint8)
    index = np.arange(num_colours)
    for significance in range(8):
        for channel in range(3):
            palette[:, channel] |= (
                ((index >> (3 * significance + channel)) & 1) << (7 - significance)
            ).astype(np.uint8)
    return palette


def draw_panel(picture: Picture, class_names: Sequence[str], background_threshold: float) -> Figure:
    """Draw image, CAMs, pseudo label, prediction and ground truth side by side, with a legend.

    Args:
        picture: Data of the panels.
        class_names: Names of the classes, the background first.
        background_threshold: Drawn as a line into every CAM; inside the line the evaluation counts
            foreground.
    """
    height, width = picture.mask.shape
    labels = {
        "pseudo_label": picture.pseudo_label,
        "prediction": picture.prediction,
        "mask": picture.mask,
    }
    label_maps = {name: label for name, label in labels.items() if label is not None}
    names = ("image", *picture.cams, *label_maps)
    # Besides the panels, 0.5 inches for the colour bar, and 0.85 for titles and legend. Images that
    # are higher than 1.6 times their width are drawn narrower.
    size_inches = (
        len(names) * _PANEL_INCHES + 0.5,
        _PANEL_INCHES * min(height / width, 1.6) + 0.85,
    )
    figure = Figure(figsize=size_inches, dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", h_pad=0.03, w_pad=0.02)
    panels: dict[str, Axes] = dict(zip(names, figure.subplots(1, len(names)), strict=True))
    for name, axes in panels.items():
        axes.set_gid(name)
    _show_image(panels["image"], picture.image, "image")
    for name, cam in picture.cams.items():
        heat = _show_cam(panels[name], picture.image, cam, title_of(name), background_threshold)
    # Colour bar beside the last CAM, as high as the CAM for any aspect ratio.
    colour_bar_axes = panels[list(picture.cams)[-1]].inset_axes((1.02, 0, 0.05, 1))
    colour_bar = figure.colorbar(heat, cax=colour_bar_axes, ticks=[0, background_threshold, 1])
    colour_bar.ax.tick_params(labelsize=7, length=2)
    palette = voc_palette()
    for name, label in label_maps.items():
        _show_image(panels[name], palette[label], _LABEL_TITLES[name])
    present = [class_names[k] for k in (np.flatnonzero(picture.class_labels) + 1).tolist()]
    title = printable(f"{picture.name}: {', '.join(present) or 'no class'}")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", parse_math=False)
    _legend(figure, list(label_maps.values()), class_names, palette)
    return figure


def save_panels(
    pictures: Sequence[Picture],
    class_names: Sequence[str],
    background_threshold: float,
    folder: Path,
) -> list[Path]:
    """Write one PNG for every picture into ``folder``, with the image's name; return the paths.

    Characters that some file system refuses become ``_``. A digest of the image's name is appended
    to names that are too long or that two images would share. A picture that cannot be drawn or
    written is left out with a warning.
    """
    paths = []
    for picture, stem in zip(
        pictures, _file_stems([picture.name for picture in pictures]), strict=True
    ):
        path = folder / f"{stem}.png"
        if save_figure(
            lambda: draw_panel(picture, class_names, background_threshold),  # noqa: B023
            path,
            with_panels=True,
        ):
            paths.append(path)
    return paths


def save_figure(draw: Callable[[], Figure], path: Path, *, with_panels: bool = False) -> bool:
    """Draw a figure and write it as a PNG; return whether it was written.

    Results do not depend on pictures, so any error becomes a warning that names the file.

    Args:
        draw: Makes the figure.
        path: The file; its folder is made.
        with_panels: Store the positions of the panels in the file, see :data:`PANELS`.
    """
    try:
        with without_glyph_warnings():
            figure = draw()
            metadata = {PANELS: json.dumps(_boxes(figure))} if with_panels else None
            with whole_file(path) as partial:
                figure.savefig(partial, format="png", metadata=metadata)
    except Exception as error:  # Matplotlib raises anything
        logger.warning(
            "The picture %s is left out, because it cannot be drawn or written: %s",
            printable(path),
            printable(error),
        )
        return False
    return True


@contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Suppress warnings about characters that Matplotlib's font lacks, as in Chinese names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _file_stems(names: Sequence[str]) -> list[str]:
    """Return a file name for each image, without suffix.

    >>> _file_stems(["2007/a b", "c"])
    ['2007_a_b', 'c']
    """
    stems = [re.sub(r"[^0-9A-Za-z._-]", "_", name) for name in names]
    return [
        stem
        if len(stem) <= _LONGEST_STEM and stems.count(stem) == 1
        else f"{stem[:_LONGEST_STEM]}_{_name_digest(name)}"
        for name, stem in zip(names, stems, strict=True)
    ]


def _name_digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _boxes(figure: Figure) -> dict[str, list[int]]:
    """Compute the pixels of each panel, by which a reader can cut out a single one."""
    figure.draw_without_rendering()  # computes the layout
    height = round(figure.bbox.height)
    extents = {
        axes.get_gid(): axes.get_window_extent()
        for axes in figure.axes
        if axes.get_gid() is not None
    }
    return {
        str(name): [
            math.ceil(box.x0),
            height - math.floor(box.y1),
            math.floor(box.x1),
            height - math.ceil(box.y0),
        ]
        for name, box in extents.items()
    }


def draw_similarity_curve(curves: Mapping[str, Sequence[float | None]]) -> Figure:
    """Draw the mean patch similarity after every block, a line for each curve; blocks from 1."""
    figure, axes = _curve_figure()
    for name, values in curves.items():
        axes.plot(
            range(1, len(values) + 1),
            [np.nan if v is None else v for v in values],
            marker="o",
            ms=4,
            label=name,
        )
    axes.set_xticks(range(1, max((len(values) for values in curves.values()), default=0) + 1))
    axes.set_xlabel("block")
    axes.set_ylabel("mean patch similarity (cosine)")
    axes.set_title("Over-smoothing: similarity of patches by block", fontsize=10)
    _set_literal_names(
        axes.legend(list(axes.get_lines()), [" "] * len(curves), frameon=False, fontsize=8),
        list(curves),
    )
    return figure


def draw_threshold_curve(curve: ThresholdCurve, background_threshold: float) -> Figure:
    """Draw each CAM's mIoU by background threshold; mark the fixed and the best threshold."""
    figure, axes = _curve_figure()
    for name, values in ((title_of(cam), miou) for cam, miou in curve.miou.items()):
        percent = np.array([np.nan if v is None else 100 * v for v in values])
        (line,) = axes.plot(curve.thresholds, percent, label=name)
        if np.isfinite(percent).any():
            best = int(np.nanargmax(percent))
            line.set_label(f"{name}: best {percent[best]:.1f} at {curve.thresholds[best]:.2f}")
            axes.plot(curve.thresholds[best], percent[best], "o", ms=5, color=line.get_color())
    axes.axvline(
        background_threshold,
        color="grey",
        lw=1,
        ls="--",
        label=f"fixed threshold {background_threshold:g}",
    )
    axes.set_xlabel("background threshold")
    axes.set_ylabel("mIoU (%)")
    axes.set_title("CAM quality by background threshold", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _curve_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _show_image(axes: Axes, image: UInt8[np.ndarray, "h w 3"], title: str) -> None:
    # Nearest neighbour: interpolation would show classes that a label map does not contain, and
    # would hide how small an image is.
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=9, pad=3)
    axes.set_axis_off()


def _show_cam(
    axes: Axes,
    image: UInt8[np.ndarray, "h w 3"],
    cam: Float[np.ndarray, "h w"],
    title: str,
    threshold: float,
) -> AxesImage:
    grey = image.astype(np.float32).mean(-1) / 255
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    heat = axes.imshow(
        cam, cmap=_CAM_COLOURS, vmin=0, vmax=1, alpha=_CAM_OPACITY, interpolation="nearest"
    )
    if cam.min() <= threshold < cam.max():
        axes.contour(cam, levels=[threshold], colors="white", linewidths=0.9)
    axes.set_title(f"{title} (line at {threshold:g})", fontsize=9, pad=3)
    axes.set_axis_off()
    return heat


def _legend(
    figure: Figure,
    maps: Sequence[Integer[np.ndarray, "h w"]],
    class_names: Sequence[str],
    palette: UInt8[np.ndarray, "256 3"],
) -> None:
    label_values = sorted({int(value) for label in maps for value in np.unique(label)})
    names = {
        value: "void / uncertain" if value == IGNORE_INDEX else class_names[value]
        for value in label_values
    }
    legend = figure.legend(
        handles=[
            Patch(facecolor=palette[value] / 255, edgecolor="grey", lw=0.5) for value in names
        ],
        labels=[" "] * len(names),
        loc="outside lower left",
        ncols=_CLASSES_IN_A_LEGEND_ROW,
        frameon=False,
        fontsize=8,
        handlelength=1.2,
    )
    _set_literal_names(legend, list(names.values()))


def _set_literal_names(legend: Legend, names: Sequence[str]) -> None:
    """Set a legend's texts literally; as labels, Matplotlib drops names that begin with ``_``."""
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(printable(name))
