"""Map parameters of :class:`toco.methods.toco.ToCo` to those of the official network."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

MODULE = "module."
"""Prefix of names in official checkpoints, which were saved from a distributed wrapper."""
UNUSED = "encoder.head."
"""The 1000-class layer of the pretraining, which the official network keeps but never uses."""

_PREFIXES = {
    "backbone.vit": "encoder",
    "projection": "proj_head",
    "teacher": "proj_head_t",
    "decoder": "decoder",
    "classifier": "classifier",
    "aux_classifier": "aux_classifier",
}
_ENCODER = re.compile(
    r"cls_token|pos_embed|"
    r"(patch_embed\.proj|norm|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)
"""Parameters of a plain ViT: no registers, no layer scales, no second token."""
_CONVOLUTIONS = frozenset({"classifier.weight", "aux_classifier.weight"})
"""Parameters that are 1x1 convolutions officially, and matrices here."""
# Classes of ImageNet-1k, whose classifier official checkpoints contain without using it.
_NUM_PRETRAINED_CLASSES = 1000
_MAX_LISTED = 6
"""Problems that a message lists at most: the first ones usually have the cause of all."""


def official_name(name: str) -> str:
    """Return the official name of a parameter of this project, without ``module.``.

    >>> official_name("backbone.vit.cls_token"), official_name("teacher.mlp.0.bias")
    ('encoder.cls_token', 'proj_head_t.mlp.0.bias')

    Raises:
        ValueError: The official network has no such parameter.
    """
    for prefix, official_prefix in _PREFIXES.items():
        within = name.removeprefix(f"{prefix}.")
        if within != name and (official_prefix != "encoder" or _ENCODER.fullmatch(within)):
            return f"{official_prefix}.{within}"
    raise ValueError(
        f"The official network has no counterpart of {name}: it is ToCo on a plain ViT."
    )


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict to that of the official network, without ``module.``.

    The 1000-class layer, which ToCo here does not have, is zeros: it never gets a gradient and is
    never read.

    Raises:
        ValueError: The official network has no such parameter.
    """
    official = {
        official_name(name): value.reshape(_official_shape(name, value))
        for name, value in state.items()
    }
    width = official["encoder.cls_token"].shape[-1]
    like = official["encoder.cls_token"]
    official[f"{UNUSED}weight"] = like.new_zeros(_NUM_PRETRAINED_CLASSES, width)
    official[f"{UNUSED}bias"] = like.new_zeros(_NUM_PRETRAINED_CLASSES)
    return official


def from_official(
    official: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Convert a state dict of the official network to that of ToCo here.

    Args:
        official: State dict, with or without ``module.`` and the unused layer.
        expected: State dict of ToCo here, for its names and shapes.

    Raises:
        ValueError: Names, shapes or types differ, or a value is not finite; the message names the
            first few.
    """
    tensors = {name.removeprefix(MODULE): value for name, value in official.items()}
    tensors = {name: value for name, value in tensors.items() if not name.startswith(UNUSED)}
    names = {official_name(name): name for name in expected}
    shapes = {name: _official_shape(names[name], expected[names[name]]) for name in names}
    problems = [f"{name} {list(shapes[name])} is missing" for name in names.keys() - tensors.keys()]
    problems += [
        f"{name} {list(tensors[name].shape)} is unknown" for name in tensors.keys() - names.keys()
    ]
    for name in names.keys() & tensors.keys():
        value = tensors[name]
        if tuple(value.shape) != shapes[name]:
            problems.append(f"{name} has shape {list(value.shape)}, expected {list(shapes[name])}")
        elif value.dtype != torch.float32:
            problems.append(f"{name} is {value.dtype}, expected torch.float32")
        elif not value.isfinite().all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        listed = "; ".join(sorted(problems)[:_MAX_LISTED])
        raise ValueError(
            f"{len(problems)} differences from the official network of this config: {listed}."
        )
    return {
        name: tensors[official_key].reshape(expected[name].shape)
        for official_key, name in names.items()
    }


def _official_shape(name: str, value: Tensor) -> tuple[int, ...]:
    return (*value.shape, 1, 1) if name in _CONVOLUTIONS else tuple(value.shape)
