"""Networks of timm by their names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from toco.backbones._backbone import BackboneConfig
from toco.backbones._weights import load_file
from toco.config import RUN_ONLY

HUB = "hub"
logger = logging.getLogger(__name__)


class TimmConfig(BackboneConfig):
    """A network of timm.

    Attributes:
        model: Name in timm, with its tag where weights come from the hub, as in ``deit_base_patch16_224.fb_in1k``.
        weights: ``hub`` downloads timm's weights; a path reads a file (safetensors, or a torch file of plain tensors);
            ``null`` starts from random weights.
        weights_sha256: What the SHA-256 (hex) of such a file has to begin with. What the hub gives is not looked at:
            its files hold the same tensors in another format.
    """

    model: str
    weights: str | None = HUB
    weights_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{8,64}$", json_schema_extra={RUN_ONLY: True})


def create(config: TimmConfig, kind: str, **options: Any) -> nn.Module:  # noqa: ANN401 - of any model of timm
    """The network that ``config`` names, without a classifier, with the hub's weights if it asks for them.

    Raises:
        ValueError: timm has no such model, or it is none of the ``kind``, which alone takes the ``options``.
    """
    # timm takes seconds to import, and what only counts or reports trainings needs the config alone.
    import toco.backbones._torchvision  # noqa: F401 - must come before timm

    from timm import create_model  # isort: skip

    try:
        network: nn.Module = create_model(config.model, pretrained=config.weights == HUB, num_classes=0, **options)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"timm could not create {config.model!r} as a {kind}: {error}") from error
    if config.weights == HUB:
        _compare_pixels(config, network)
    return network


def load(config: TimmConfig, network: nn.Module) -> None:
    """Load the weights of a file into ``network``, if ``config`` names one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is another file than ``config`` says, or the weights do not fit.
    """
    if (path := weights_path(config)) is not None:
        load_file(network, path, config.weights_sha256)


def weights_path(config: TimmConfig) -> Path | None:
    """The file that the weights are read from, if they are read from one."""
    return None if config.weights in (None, HUB) else Path(str(config.weights))


def _compare_pixels(config: TimmConfig, network: Any) -> None:  # noqa: ANN401 - a model of timm, with its record
    made_with = tuple(network.pretrained_cfg["mean"]), tuple(network.pretrained_cfg["std"])
    if made_with != (config.pixel_mean, config.pixel_std):
        logger.warning(
            "timm says that the weights of %s were made with pixel_mean=%s and pixel_std=%s; here they get images "
            "normalised with %s and %s. Set both fields of the backbone if that is not what you want "
            "(the official ViT-B takes ImageNet's on purpose).",
            config.model,
            *(list(values) for values in (*made_with, config.pixel_mean, config.pixel_std)),
        )
