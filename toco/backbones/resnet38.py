"""WideResNet38 (model A1 of "Wider or Deeper") with stride 8, which has NO CLASS TOKEN.

It is the backbone of AffinityNet (psa), of EPS, and of RCA on EPS.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from toco.backbones._config import BackboneConfig, Dimensions, split_entry
from toco.config import PLACE, RUN_ONLY

if TYPE_CHECKING:
    from toco.backbones._resnet38 import ResNet38

_Probability = Annotated[float, Field(ge=0, lt=1)]


class Config(BackboneConfig):
    """Settings of a WideResNet38.

    A block is one of the 17 residual blocks. ``aux_block`` may be 6 to 16, which have the final
    grid. ``optim.frozen_layers=4`` freezes the first convolution and b2, as psa and EPS do.

    Attributes:
        width_divisor: Divides all widths. Pretrained weights exist for 1 alone; other values make
            small networks, for tests and small images.
        norms: ``frozen`` keeps statistics, scale and shift of all batch norms, as psa and EPS do.
            On random weights such norms do nothing. ``trained`` is batch norm as usual: each pass
            of a training step, also one for CAMs, normalises with the statistics of its own images
            and moves the running ones. Each process would see its own images alone, so several
            processes are refused.
        dropout: Probabilities in [0, 1) with which b6 and b7 drop channels in training mode. psa
            and EPS have 0.3 and 0.5. Here they are 0, because the draws come from torch's global
            generator. Its state is in checkpoints, but all processes draw the same numbers, so
            results depend on the number of processes.
        weights: A path reads a file with the names of psa: safetensors, or a torch file of plain
            tensors. No hub has such weights. ``null`` starts from random weights.
        weights_sha256: Beginning of the SHA-256 (hex) of such a file.
        class_token: ``pooled`` is the mean of the final map. Class token contrast uses it, because
            a ResNet has no class token. This is not in the paper of ToCo. The setting has one
            value, and exists so that every record of a run says so.
    """

    name: str = "resnet38"
    width_divisor: Literal[1, 2, 4, 8, 16, 32, 64] = 1
    norms: Literal["frozen", "trained"] = "frozen"
    dropout: tuple[_Probability, _Probability] = (0.0, 0.0)
    weights: str | None = Field(default=None, json_schema_extra={PLACE: []})
    weights_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{8,64}$", json_schema_extra={RUN_ONLY: True}
    )
    class_token: Literal["pooled"] = "pooled"  # noqa: S105 - not a password

    def dimensions(self) -> Dimensions:
        """See the base class."""
        return Dimensions(17, 8)

    def check_ranks(self, world_size: int) -> None:
        """See the base class; batch norms that learn compare the images of one process."""
        if world_size > 1 and self.norms == "trained":
            raise ValueError(
                "backbone.norms is trained, so batch norms take the statistics of one process's "
                f"images, which {world_size} processes do not share; set it to frozen, or train in "
                "one process"
            )


def build(config: Config) -> ResNet38:
    """Build the backbone that ``config`` describes.

    Raises:
        FileNotFoundError: The file of weights does not exist.
        ValueError: The weights do not fit.
    """
    # Imported late: naming a backbone needs no torch.
    from torch import nn

    from toco.backbones._resnet38 import FrozenBatchNorm, ResNet38, WideResNet38
    from toco.backbones._weights import load_file

    norm = FrozenBatchNorm if config.norms == "frozen" else nn.BatchNorm2d
    resnet = WideResNet38(config.width_divisor, norm, config.dropout)
    backbone = ResNet38(resnet, config.pixel_mean, config.pixel_std)
    if (path := weights_path(config)) is not None:
        load_file(resnet, path, config.weights_sha256, split_entry(str(config.weights))[1])
    return backbone


def weights_path(config: Config) -> Path | None:
    """Path of the file of weights, or ``None`` for random weights."""
    return None if config.weights is None else split_entry(config.weights)[0]
