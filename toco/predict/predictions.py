"""Predicted labels of images, and what can be made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from toco.data.files.images import png
from toco.files import write_text
from toco.predict.coco_json import coco_annotations
from toco.predict.formats import label_png, npz, read_index_png
from toco.predict.image_files import Images, find_faults, large_enough
from toco.predict.output_folder import OutputFolder
from toco.predict.overlay import overlay as painted
from toco.types import Shard


@dataclass(frozen=True, slots=True)
class Predicted:
    """What :func:`predict` did.

    Attributes:
        labels: The folder of labels.
        num_made: Labels that were made now.
        faults: For every image of this share that cannot be segmented, a sentence that says why; if
            the work is complete, for those of other shares, too.
        is_complete: Whether every image that can be segmented has a label. Else another process is
            still at work.
    """

    labels: OutputFolder
    num_made: int
    faults: Mapping[int, str]
    is_complete: bool


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
) -> Predicted:
    """Segment images; what ``out`` holds of the same bytes already is not made again.

    ``out/labels`` gets an index PNG for each image, in VOC's palette. All else is asked for:
    ``out/overlays``, ``out/probabilities`` (NPZ files with one float16 array ``probabilities`` [s,
    h, w], the background first) and ``out/coco.json``. Overlays and the JSON are made from the
    labels, so they can be asked for later at little cost. Images that cannot be segmented are left
    out; the others are segmented.

    Args:
        probabilities_of: Class probabilities of an image at its own size.
        images: The images.
        class_names: Foreground classes.
        out: The folder.
        about: How the probabilities are made; the outputs of another way are not mixed with these.
        shard: Which share of the images is worked on.
        overlay: Paint the classes over the images, with a legend, as PNG files.
        soft: Keep the probabilities.
        coco_json: File names of the images in ``out/coco.json``; without them there is none. It is
            written by a process that finds a label of every image that can be segmented, as the
            last of several does.
        least_side_px: Images with a shorter side cannot be segmented.
        progress: Show a bar.

    Raises:
        ValueError: ``out`` was made in another way.
    """
    kinds = (
        {"labels": ".png"}
        | ({"probabilities": ".npz"} if soft else {})
        | ({"overlays": ".png"} if overlay else {})
    )
    input_sha256 = cache(images.image_sha256)
    folders = {
        kind: OutputFolder(out / kind, about, images.names, suffix, input_sha256)
        for kind, suffix in kinds.items()
    }
    labels, probabilities, overlays = (
        folders["labels"],
        folders.get("probabilities"),
        folders.get("overlays"),
    )
    by_network = {
        *labels.missing(shard),
        *(probabilities.missing(shard) if probabilities is not None else ()),
    }
    unmade = sorted(by_network.union(overlays.missing(shard) if overlays is not None else ()))
    read = large_enough(images, least_side_px)
    faults = find_faults(read, unmade, progress=progress)
    num_made = 0
    for index in tqdm(
        sorted(by_network - faults.keys()), desc="predict", unit="image", disable=not progress
    ):
        try:
            found = probabilities_of(read(index))
        except ValueError as error:
            faults[index] = str(error)
            continue
        except (MemoryError, RuntimeError) as error:
            # For the host's memory torch raises a RuntimeError like any other.
            is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if not is_memory and "can't allocate memory" not in str(error):
                raise
            faults[index] = (
                f"{images.names[index]!r} does not fit into the memory. Tiles (--set inference.tile_px=1024), fewer "
                "scales and no mirror images take less."
            )
            continue
        if probabilities is not None:
            probabilities.write(index, npz(probabilities=found.half().cpu().numpy()))
        labels.write(index, label_png(found))
        num_made += 1
    if overlays is not None:

        def paint(index: int) -> bytes:
            image, label = images.image(index), read_index_png(labels.output(index))
            if image.shape[:2] != label.shape:
                raise ValueError(
                    f"{images.names[index]!r} changed while it was worked on; give the same command again."
                )
            return png(painted(image, label, class_names))

        overlays.fill(paint, shard, without=faults, doing="overlay", progress=progress)
    missing = labels.missing()
    is_complete = _add_faults(faults, read, missing)
    if coco_json is not None and is_complete and len(missing) < len(labels.names):
        labelled = sorted(set(range(len(labels.names))).difference(missing))
        written = (read_index_png(labels.output(index)) for index in labelled)
        annotations = coco_annotations(
            [coco_json[index] for index in labelled], written, class_names
        )
        write_text(out / "coco.json", json.dumps(annotations))
    return Predicted(labels, num_made, faults, is_complete)


def _add_faults(
    faults: dict[int, str], read: Callable[[int], object], missing: Sequence[int]
) -> bool:
    """Add the faults of images of other shares, up to the first that has none: its process is still at work.

    Returns:
        Whether there is a fault of every missing image.
    """
    for index in missing:
        if index not in faults:
            found = find_faults(read, [index])
            if not found:
                return False
            faults |= found
    return True
