"""CAMs of the classes in an image, at the image's size, and CAM files for a second stage."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from toco.data import Dataset
from toco.evaluate.config import EvaluateConfig
from toco.evaluate.sizes import network_input, resize_bilinear
from toco.methods import Method
from toco.predict.formats import npz
from toco.predict.image_files import check_readable
from toco.predict.output_folder import OutputFolder
from toco.tensors import Cams, present_classes
from toco.types import Shard

_IRN_STRIDE = 4  # the sides of IRN's smaller maps are a quarter of the image's


@torch.no_grad()
def cams_of(
    method: Method,
    image: UInt8[np.ndarray, "h w 3"],
    present: Int[Tensor, "1 m"],
    config: EvaluateConfig,
    device: torch.device | str,
) -> Cams:
    """Compute the CAMs of one image as the evaluation does, at the network's input size."""
    images = network_input(torch.tensor(image, device=device)[None], config.size_px)
    return method.cams(images, config.cam_scales, config.cam_flip, present.to(device))


def cam_protocol(config: EvaluateConfig) -> dict[str, Any]:
    """Return the settings on which CAMs depend."""
    return {"size_px": config.size_px, "cam_scales": config.cam_scales, "cam_flip": config.cam_flip}


def export_cams(
    method: Method,
    dataset: Dataset,
    config: EvaluateConfig,
    out: Path,
    about: Mapping[str, Any],
    shard: Shard = Shard(),
    *,
    device: torch.device | str = "cpu",
    dtype: Literal["float32", "float16"] = "float32",
    progress: bool = False,
) -> OutputFolder:
    """Write the CAMs of each image to an NPZ file; skip images whose file is up to date.

    CAMs follow the evaluation: ``config`` gives the scales, the flip and ``size_px`` (448: the
    image is squashed to a square; ``None``: the image's own size). Each class is min-max normalised
    to [0, 1]. Only classes of the image-level label have CAMs. The array names are IRN's
    (``np.load(name + ".npz")["high_res"]``), plus further CAMs; ``m`` is the number of classes:

    - ``keys`` int64 [m]: ascending classes from 0, without background;
    - ``high_res`` [m, h, w]: CAM at the image's size;
    - ``cam`` [m, ceil(h / 4), ceil(w / 4)]: CAM with a quarter of the sides;
    - ``X_high_res``, ``X_cam``: the same arrays for each further CAM ``X_cam`` of the method.

    Args:
        method: Method in evaluation mode, on ``device``.
        dataset: Images and image-level labels.
        config: Protocol of the CAMs.
        out: Output folder.
        about: Identity of the method; a folder does not mix outputs of different methods.
        shard: Part of the images that this process handles.
        device: Device of the method.
        dtype: Type of the CAMs.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: An image or its label cannot be read (all are read before the work starts), or
            the files in ``out`` were made with other settings.
    """
    settings = {**about, **cam_protocol(config), "dtype": dtype}
    folder = open_labelled(dataset, out, settings, ".npz", shard, progress=progress)

    def make(index: int) -> bytes:
        image, class_labels = dataset.image(index), dataset.class_labels(index)
        keys = np.flatnonzero(class_labels)
        cams = cams_of(
            method, image, present_classes(torch.from_numpy(class_labels)[None]), config, device
        )
        height, width, _ = image.shape
        strided = -(-height // _IRN_STRIDE), -(-width // _IRN_STRIDE)

        def at(cam: Tensor, size: tuple[int, int]) -> Float[np.ndarray, "m h w"]:
            # An image without any class has the CAM of one absent class, which is dropped here.
            return resize_bilinear(cam, size)[0, : len(keys)].cpu().numpy().astype(dtype)

        arrays = {"keys": keys}
        for name, cam in cams.by_name().items():
            arrays[f"{name.removesuffix('cam')}high_res"] = at(cam, (height, width))
            arrays[name] = at(cam, strided)
        return npz(**arrays)

    folder.fill(make, shard, task="export CAMs", progress=progress)
    return folder


def open_labelled(
    dataset: Dataset,
    out: Path,
    about: Mapping[str, Any],
    suffix: str,
    shard: Shard,
    *,
    progress: bool,
) -> OutputFolder:
    """Open a folder of outputs that depend on images and image-level labels.

    Raises:
        ValueError: An image without an output, or its label, cannot be read, or the files in
            ``out`` were made with other settings.
    """

    def input_sha256(index: int) -> str:
        return hashlib.sha256(
            dataset.image_sha256(index).encode() + dataset.class_labels(index).tobytes()
        ).hexdigest()

    folder = OutputFolder(out, about, dataset.names, suffix, input_sha256)
    check_readable(
        lambda index: (dataset.image(index), dataset.class_labels(index)),
        [folder],
        shard,
        progress=progress,
    )
    return folder
