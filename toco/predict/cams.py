"""CAMs of the classes that an image contains, at the image's size, and files of them for a second stage."""

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

_IRN_STRIDE = 4


@torch.no_grad()
def cams_of(
    method: Method,
    image: UInt8[np.ndarray, "h w 3"],
    present: Int[Tensor, "1 m"],
    config: EvaluateConfig,
    device: torch.device | str,
) -> Cams:
    """The CAMs of one image by the protocol of the evaluation, at the size that the network sees (``size_px``)."""
    images = network_input(torch.tensor(image, device=device)[None], config.size_px)
    return method.cams(images, config.cam_scales, config.cam_flip, present.to(device))


def cam_protocol(config: EvaluateConfig) -> dict[str, Any]:
    """The settings that CAMs depend on."""
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
    """Write an NPZ file for each image; what ``out`` holds of the same image and label is not made again.

    CAMs follow the evaluation: the scales, the flip and ``size_px`` (448: squashed; ``None``: the
    image's own size) of ``config``, each class min-max normalised to [0, 1], of the classes of the
    image-level label alone. The names are IRN's (``np.load(name + ".npz")["high_res"]``), with
    further CAMs besides; ``m`` is the number of classes:

    - ``keys`` int64 [m]: classes, from 0 without background, ascending;
    - ``high_res`` [m, h, w]: CAM at the image's size;
    - ``cam`` [m, ceil(h / 4), ceil(w / 4)]: the same at a quarter of it;
    - ``X_high_res``, ``X_cam``: the same of each further CAM of the method, whose name is
      ``X_cam``.

    Args:
        method: In evaluation mode, on ``device``.
        dataset: Images and image-level labels.
        config: The protocol.
        out: The folder.
        about: What the method is; its outputs and those of another are not mixed.
        shard: Which share of the images is worked on.
        device: Where the method is.
        dtype: Of the CAMs.
        progress: Show a bar.

    Raises:
        ValueError: An image or its label cannot be read (all are tried first), or ``out`` was made
            in another way.
    """
    made_by = {**about, **cam_protocol(config), "dtype": dtype}
    folder = open_labelled(dataset, out, made_by, ".npz", shard, progress=progress)

    def make(index: int) -> bytes:
        image, class_labels = dataset.image(index), dataset.class_labels(index)
        keys = np.flatnonzero(class_labels)
        cams = cams_of(
            method, image, present_classes(torch.from_numpy(class_labels)[None]), config, device
        )
        height, width, _ = image.shape
        strided = -(-height // _IRN_STRIDE), -(-width // _IRN_STRIDE)

        def at(cam: Tensor, size: tuple[int, int]) -> Float[np.ndarray, "m h w"]:
            # An image without any class has the CAM of an absent one, which is left out.
            return resize_bilinear(cam, size)[0, : len(keys)].cpu().numpy().astype(dtype)

        arrays = {"keys": keys}
        for name, cam in cams.by_name().items():
            arrays[f"{name.removesuffix('cam')}high_res"] = at(cam, (height, width))
            arrays[name] = at(cam, strided)
        return npz(**arrays)

    folder.fill(make, shard, doing="export CAMs", progress=progress)
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
    """The folder of outputs that are made of images and image-level labels.

    Raises:
        ValueError: An image or its label cannot be read (all that are missing are tried), or
            ``out`` was made in another way.
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
