"""Settings of backbones. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from toco.config import PLACE, RUN_ONLY, EntryConfig, Positive
from toco.types import IMAGENET_MEAN, IMAGENET_STD

HUB = "hub"
ENTRY = "#"
"""Separates a file from the name of a state dict in it: ``file.pth#teacher``."""


class Dimensions(NamedTuple):
    """Number of blocks, and side of a patch in pixels of the input."""

    depth: int
    patch_size_px: int


class BackboneConfig(EntryConfig):
    """Base of the configs of ``toco.backbones``.

    Attributes:
        pixel_mean: Mean of R, G and B, in [0, 1], that the weights expect. Batches are always
            normalised with ImageNet's mean and deviation; a backbone with others converts them in
            its forward pass. The official ViT-B takes ImageNet's, although its weights were made
            with 0.5 and 0.5, so the values are never read from the weights.
        pixel_std: Standard deviation of R, G and B that the weights expect.
    """

    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[Positive, Positive, Positive] = IMAGENET_STD

    def dimensions(self) -> Dimensions | None:
        """Return the dimensions, or ``None`` where only the network itself knows them."""
        return None

    def check_compile(self) -> None:
        """Check that torch can compile a training step with this backbone.

        Raises:
            ValueError: It cannot.
        """

    def check_ranks(self, world_size: int) -> None:
        """Check that ``world_size`` processes can train this backbone together.

        Raises:
            ValueError: They cannot.
        """


class StochasticDepthConfig(BackboneConfig):
    """Base of the configs of networks that can drop residual paths in training.

    Attributes:
        drop_path: Probability that the residual paths of the last block are dropped for an image in
            training. It rises linearly from 0 at the first block, as in timm. A path that is kept
            is divided by the probability to keep it. 0 is the official recipe of ToCo; AFA and
            TS-CAM use 0.1.
    """

    drop_path: float = Field(default=0.0, ge=0, lt=1)

    def check_compile(self) -> None:
        """See the base class; a compiled step cannot draw from a generator."""
        if self.drop_path:
            raise ValueError(
                f"compile is true and backbone.drop_path is {self.drop_path}, but a compiled step "
                "cannot draw which paths to drop; set compile to false, or drop_path to 0"
            )


class TimmConfig(BackboneConfig):
    """Settings of a network of timm.

    Attributes:
        model: Name in timm, with the tag of the weights if they come from the hub, as in
            ``deit_base_patch16_224.fb_in1k``.
        weights: ``hub`` downloads timm's weights. A path reads a file: safetensors, or a torch file
            of plain tensors. If the file holds several state dicts, name one after the path, as in
            ``dino.pth#teacher``. ``null`` starts from random weights.
        weights_sha256: Beginning of the SHA-256 (hex) of such a file. Weights from the hub are not
            checked: its files hold the same tensors in another format.
    """

    model: str
    weights: str | None = Field(default=HUB, json_schema_extra={PLACE: [HUB]})
    weights_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{8,64}$", json_schema_extra={RUN_ONLY: True}
    )


def weights_path(config: TimmConfig) -> Path | None:
    """Path of the file of weights; ``None`` for weights from the hub or random ones."""
    return None if config.weights in (None, HUB) else split_entry(str(config.weights))[0]


def split_entry(text: str) -> tuple[Path, str | None]:
    """Split ``backbone.weights`` into the file and the name of a state dict in it, if any.

    >>> split_entry("dino.pth#teacher")[1], split_entry("dino.pth")[1]
    ('teacher', None)
    """
    file, mark, entry = text.rpartition(ENTRY)
    if not mark or Path(text).exists():
        return Path(text), None
    return Path(file), entry
