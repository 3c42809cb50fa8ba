"""From images of any size to what a method says of them, and from maps of any size to the size of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from toco.data._normalize import normalise
from toco.methods._method import Method
from toco.types import Cams


@dataclass(frozen=True, slots=True)
class Prediction:
    """All that a method says of a batch of images, in float32, without knowledge of their labels.

    Attributes:
        cams: CAMs of all classes at the size of the input.
        class_logits: Logits of the classifier.
        segmentation_logits: Logits of the decoder on the patch grid, background first.
        block_tokens: Patch tokens after every block; their number and width may change from block to block.
    """

    cams: Cams
    class_logits: Float[Tensor, "b k"]
    segmentation_logits: Float[Tensor, "b s p q"]
    block_tokens: tuple[Float[Tensor, "b _ _"], ...]


def predict(method: Method, images: Float[Tensor, "b 3 h w"], scales: Sequence[float], flip: bool) -> Prediction:
    """Run ``method`` on normalised images. The caller has put it into evaluation mode and switched gradients off."""
    cams = method.cams(images, scales, flip)
    class_logits, _ = method.class_logits(images)
    return Prediction(
        cams=Cams(cam=cams.cam.float(), aux_cam=cams.aux_cam.float()),
        class_logits=class_logits.float(),
        segmentation_logits=method.segmentation_logits(images).float(),
        block_tokens=tuple(tokens.float() for tokens in method.block_tokens(images)),
    )


def network_input(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], size_px: int | None, device: torch.device | str
) -> Float[Tensor, "b 3 h w"]:
    """Normalised images as one batch, squashed to a square of ``size_px`` unless that is ``None``.

    The official validation squashes every image so, whatever its aspect ratio (``tools/infer_cam.py``): bilinear,
    without antialias, after the normalisation.

    Raises:
        ValueError: The sizes differ and ``size_px`` is ``None``.
    """
    shapes = [image.shape for image in images]
    if size_px is None and len(set(shapes)) > 1:
        raise ValueError(f"Images of one batch at native size need one size; got {sorted(set(shapes))}.")
    if len(set(shapes)) == 1:
        return _squash(images, size_px, device)
    return torch.cat([_squash([image], size_px, device) for image in images])


def resize_bilinear(maps: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """Maps of scores at another size (half-pixel centres, no antialias), as the official validation resizes them."""
    if maps.shape[-2:] == size:
        return maps
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resize_nearest(label: Integer[Tensor, "b h w"], size: tuple[int, int]) -> Integer[Tensor, "b h2 w2"]:
    """Labels at another size, so that no value appears that was not there."""
    if label.shape[-2:] == size:
        return label
    return interpolate(label[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(label.dtype)


def _squash(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], size_px: int | None, device: torch.device | str
) -> Float[Tensor, "b 3 _ _"]:
    tensor = normalise(torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2))
    return tensor if size_px is None else resize_bilinear(tensor, (size_px, size_px))
