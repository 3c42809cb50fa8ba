"""The settings of backbones. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from toco.config import PLACE, RUN_ONLY, EntryConfig, Positive
from toco.types import IMAGENET_MEAN, IMAGENET_STD

HUB = "hub"
ENTRY = "#"
"""Stands between a file and the name of the state dict in it, where it holds several: ``file.pth#teacher``."""


class Dimensions(NamedTuple):
    """Number of blocks of a backbone, and the side of its patches in pixels of the input."""

    depth: int
    patch_size_px: int


class BackboneConfig(EntryConfig):
    """Base of the configs of ``toco.backbones``.

    Attributes:
        pixel_mean, pixel_std: Normalisation that the weights expect, of pixels in [0, 1], R, G and
        B. Batches have
            ImageNet's everywhere; a backbone with another one converts them in its forward pass.
            The official ViT-B takes ImageNet's, although its weights were made with 0.5 and 0.5, so
            nothing is taken from the weights.
    """

    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[Positive, Positive, Positive] = IMAGENET_STD

    def dimensions(self) -> Dimensions | None:
        """What the settings say of the network; ``None`` where only the network itself knows."""
        return None


class TimmConfig(BackboneConfig):
    """A network of timm.

    Attributes:
        model: Name in timm, with its tag where weights come from the hub, as in
            ``deit_base_patch16_224.fb_in1k``.
        weights: ``hub`` downloads timm's weights; a path reads a file (safetensors, or a torch file
            of plain tensors; of several state dicts in it one is named behind the path, as in
            ``dino.pth#teacher``); ``null`` starts from random weights.
        weights_sha256: What the SHA-256 (hex) of such a file has to begin with. What the hub gives
            is not looked at: its files hold the same tensors in another format.
    """

    model: str
    weights: str | None = Field(default=HUB, json_schema_extra={PLACE: [HUB]})
    weights_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{8,64}$", json_schema_extra={RUN_ONLY: True}
    )


def weights_path(config: TimmConfig) -> Path | None:
    """The file that the weights are read from, if they are read from one."""
    return None if config.weights in (None, HUB) else split_entry(str(config.weights))[0]


def split_entry(text: str) -> tuple[Path, str | None]:
    """The file that ``backbone.weights`` names, and the state dict in it, if one is named.

    >>> split_entry("dino.pth#teacher")[1], split_entry("dino.pth")[1]
    ('teacher', None)
    """
    file, mark, entry = text.rpartition(ENTRY)
    if not mark or Path(text).exists():
        return Path(text), None
    return Path(file), entry
