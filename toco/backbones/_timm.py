"""Build networks of timm by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from toco.backbones._backbone import Backbone
from toco.backbones._config import HUB, TimmConfig, split_entry, weights_path
from toco.backbones._weights import load_file

Triple = tuple[float, float, float]
B = TypeVar("B", bound=Backbone)
logger = logging.getLogger(__name__)


def build(
    config: TimmConfig,
    kind: str,
    backbone_of: Callable[[Any, Triple, Triple], B],
    **options: Any,  # noqa: ANN401 - of any model of timm
) -> B:
    """Build the network that ``config`` names, without a classifier, with its weights.

    Args:
        config: The config.
        kind: Name of such networks in messages.
        backbone_of: Takes a network of timm, and the mean and standard deviation of the pixels that
            its weights expect.
        options: Options of the network. A network that does not accept them is not of this kind.

    Raises:
        FileNotFoundError: The file of weights does not exist.
        ValueError: timm has no such model, the model is not of this kind, or its weights cannot be
            loaded or do not fit.
    """
    import toco.backbones._torchvision  # noqa: F401 - must come before timm

    from timm import create_model  # isort: skip

    try:
        network: nn.Module = create_model(
            config.model,
            pretrained=config.weights == HUB,
            num_classes=0,
            **options,
        )
    except OSError as error:
        raise ValueError(
            f"The weights of {config.model!r} could not be downloaded from the hub: {error}. Set "
            "backbone.weights to a file of these weights, or to null to start from random weights."
        ) from error
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"timm could not create {config.model!r} as a {kind}: {error}") from error
    if config.weights == HUB:
        _compare_pixels(config, network)
    try:
        backbone = backbone_of(network, config.pixel_mean, config.pixel_std)
    except ValueError as error:
        raise ValueError(f"{config.model!r} cannot be a backbone: {error}") from error
    if (path := weights_path(config)) is not None:
        load_file(network, path, config.weights_sha256, split_entry(str(config.weights))[1])
    return backbone


def _compare_pixels(config: TimmConfig, network: Any) -> None:  # noqa: ANN401 - a model of timm
    made_with = tuple(network.pretrained_cfg["mean"]), tuple(network.pretrained_cfg["std"])
    if made_with != (config.pixel_mean, config.pixel_std):
        logger.warning(
            "timm says that the weights of %s were made with pixel_mean=%s and pixel_std=%s; "
            "here they get images normalised with %s and %s. Set both fields of the backbone if "
            "that is not what you want (the official ViT-B takes ImageNet's on purpose).",
            config.model,
            *(list(values) for values in (*made_with, config.pixel_mean, config.pixel_std)),
        )
