"""Predicted labels of images, and what can be made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from toco.evaluate.output_folder import OutputFolder
from toco.evaluate.outputs.coco_json import coco_annotations
from toco.evaluate.outputs.formats import label_png, npz, read_index_png, rgb_png
from toco.evaluate.outputs.image_files import Images, check_images
from toco.evaluate.outputs.overlay import overlay as painted
from toco.types import Shard


def predict(
    probabilities_of: Callable[[UInt8[np.ndarray, "h w 3"]], Float[Tensor, "s h w"]],
    images: Images,
    class_names: Sequence[str],
    out: Path,
    about: Mapping[str, Any],
    shard: Shard = Shard(),
    *,
    overlay: bool = False,
    soft: bool = False,
    coco_json: Sequence[str] | None = None,
    least_side_px: int = 1,
    progress: bool = False,
) -> OutputFolder:
    """Segment images; what ``out`` holds already is not made again.

    ``out/labels`` gets an index PNG for each image, in VOC's palette. All else is asked for: ``out/overlays``,
    ``out/probabilities`` (NPZ files with one float16 array ``probabilities`` [s, h, w], the background first) and
    ``out/coco.json``. Overlays and the JSON are made from the labels, so they can be asked for later at little cost.

    Args:
        probabilities_of: Class probabilities of an image at its own size.
        images: The images.
        class_names: Foreground classes.
        out: The folder.
        about: How the probabilities are made; the outputs of another way are not mixed with these.
        shard: Which share of the images is worked on.
        overlay: Paint the classes over the images, with a legend, as PNG files.
        soft: Keep the probabilities.
        coco_json: File names of the images in ``out/coco.json``; without them there is none. It is written by a process
            that finds all labels, as the last of several does.
        least_side_px: Images with a shorter side are refused.
        progress: Show a bar.

    Returns:
        The folder of labels.

    Raises:
        ValueError: An image cannot be read or is too small (all are tried first), or ``out`` was made in another way.
    """
    kinds = {"labels": ".png"} | ({"probabilities": ".npz"} if soft else {}) | ({"overlays": ".png"} if overlay else {})
    outputs = {out / kind: suffix for kind, suffix in kinds.items()}
    check_images(images, outputs, least_side_px, shard, progress=progress)
    folders = {kind: OutputFolder(out / kind, about, images.names, suffix) for kind, suffix in kinds.items()}
    labels, probabilities, overlays = folders["labels"], folders.get("probabilities"), folders.get("overlays")
    by_network = {*labels.missing(shard), *(probabilities.missing(shard) if probabilities is not None else ())}
    for index in tqdm(sorted(by_network), desc="predict", unit="image", disable=not progress):
        found = probabilities_of(images.image(index))
        if probabilities is not None:
            probabilities.write(index, npz(probabilities=found.half().cpu().numpy()))
        labels.write(index, label_png(found))
    if overlays is not None:

        def paint(index: int) -> bytes:
            return rgb_png(painted(images.image(index), read_index_png(labels.output(index)), class_names))

        overlays.fill(paint, shard, doing="overlay", progress=progress)
    if coco_json is not None and not labels.missing():
        written = (read_index_png(labels.output(index)) for index in range(len(labels.names)))
        partial = out / f".coco.{shard.rank}.partial"
        partial.write_text(json.dumps(coco_annotations(coco_json, written, class_names)))
        partial.replace(out / "coco.json")
    return labels
