"""Predict the labels of images, with overlays, probabilities and COCO annotations."""

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
    """Result of :func:`predict`.

    Attributes:
        labels: Folder of labels.
        num_made: Number of labels that this call made.
        faults: Reason for each image of this shard that cannot be segmented; if the work is
            complete, also for images of other shards.
        is_complete: Whether every image has a label or a fault. Otherwise images of other shards
            are missing.
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
    """Segment images; skip images whose output is up to date.

    ``out/labels`` gets an index PNG for each image, in VOC's palette. Optional outputs are
    ``out/overlays``, ``out/probabilities`` (NPZ files with one float16 array ``probabilities`` [s,
    h, w], the background first) and ``out/coco.json``. Overlays and JSON are made from the labels,
    so they can be added later at little cost. Images that cannot be segmented are skipped.

    Args:
        probabilities_of: Function that returns the class probabilities of an image at its own size.
        images: Images to segment.
        class_names: Foreground classes.
        out: Output folder.
        about: Settings that determine the probabilities; a folder has outputs of one setting only.
        shard: Part of the images that this process handles.
        overlay: Whether to paint the classes over the images, with a legend, as PNG files.
        soft: Whether to store the probabilities.
        coco_json: File names of the images in ``out/coco.json``; ``None`` for no such file. A
            process writes it if every image has a label or a fault by then: of several processes,
            usually the last.
        least_side_px: Smallest side of an image; smaller images cannot be segmented.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: The outputs in ``out`` were made with other settings, or an image changed during
            the work.
    """
    # Output folders.
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

    # Images without an output, and the faults among them.
    network_indices = {
        *labels.missing(shard),
        *(probabilities.missing(shard) if probabilities is not None else ()),
    }
    unmade_indices = sorted(
        network_indices.union(overlays.missing(shard) if overlays is not None else ())
    )
    read = large_enough(images, least_side_px)
    faults = find_faults(read, unmade_indices, progress=progress)

    # Labels and probabilities, which need the network.
    num_made = 0
    for index in tqdm(
        sorted(network_indices - faults.keys()), desc="predict", unit="image", disable=not progress
    ):
        try:
            pixel_probabilities = probabilities_of(read(index))
        except ValueError as error:
            faults[index] = str(error)
            continue
        except (MemoryError, RuntimeError) as error:
            # If the host's memory is exhausted, torch raises a plain RuntimeError.
            is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if not is_memory and "can't allocate memory" not in str(error):
                raise
            faults[index] = (
                f"{images.names[index]!r} does not fit into the memory. Tiles (--set "
                "inference.tile_px=1024), fewer scales or no mirror images need less."
            )
            continue
        if probabilities is not None:
            probabilities.write(index, npz(probabilities=pixel_probabilities.half().cpu().numpy()))
        labels.write(index, label_png(pixel_probabilities))
        num_made += 1

    # Overlays, from images and labels.
    if overlays is not None:

        def paint(index: int) -> bytes:
            image, label = images.image(index), read_index_png(labels.output(index))
            if image.shape[:2] != label.shape:
                raise ValueError(
                    f"{images.names[index]!r} changed during the work; run the same command again."
                )
            return png(painted(image, label, class_names))

        overlays.fill(paint, shard, without=faults, task="overlay", progress=progress)

    # COCO annotations, if no other process is still working.
    missing = labels.missing()
    is_complete = _add_faults(faults, read, missing)
    if coco_json is not None and is_complete and len(missing) < len(labels.names):
        labelled_indices = sorted(set(range(len(labels.names))).difference(missing))
        label_images = (read_index_png(labels.output(index)) for index in labelled_indices)
        annotations = coco_annotations(
            [coco_json[index] for index in labelled_indices], label_images, class_names
        )
        write_text(out / "coco.json", json.dumps(annotations))
    return Predicted(labels, num_made, faults, is_complete)


def _add_faults(
    faults: dict[int, str], read: Callable[[int], object], missing: Sequence[int]
) -> bool:
    """Add the faults of images of other shards, until an image without a label has no fault.

    Such an image belongs to a process that still works, or that has no memory for it.

    Returns:
        Whether every image without label has a fault.
    """
    for index in missing:
        if index not in faults:
            image_faults = find_faults(read, [index])
            if not image_faults:
                return False
            faults |= image_faults
    return True
