"""Optimizer over the parameter groups of a method, and the learning-rate schedules."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from toco.methods import Method
from toco.train.optim_config import OptimConfig, SgdConfig

_HEAD_GROUPS = frozenset({"heads", "decoder"})
"""Groups of new parameters, whose learning rate is ``head_lr_multiplier`` times ``lr``."""


def lr_factor(step: int, num_steps: int, config: OptimConfig) -> float:
    """Return the fraction of the peak rate at step ``step`` (0-based) of ``num_steps``.

    >>> from toco.train.optim_config import AdamWConfig
    >>> round(lr_factor(1500, 20_000, AdamWConfig()), 4)
    0.9322
    >>> [lr_factor(step, 9, SgdConfig(drop_steps=(4,), drop_factor=0.5)) for step in (3, 4, 5)]
    [1.0, 0.5, 0.5]

    Source: official ``utils/optimizer.py`` of ToCo (PolyWarmupAdamW); steps as in the official RCA.
    """
    if step < config.warmup_steps:
        return 1 - (1 - step / config.warmup_steps) * (1 - config.warmup_ratio)
    if isinstance(config, SgdConfig):
        return float(config.drop_factor ** bisect_right(config.drop_steps, step))
    bounded_step = min(step, num_steps - 1)
    return float((1 - bounded_step / num_steps) ** config.power)


def build_optimizer(method: Method, config: OptimConfig) -> torch.optim.Optimizer:
    """Build AdamW or SGD with the parameter groups of :func:`groups_with_rates`.

    Raises:
        ValueError: ``layer_decay`` is below 1 and the method names no layers.
    """
    groups = groups_with_rates(method, config)
    if isinstance(config, SgdConfig):
        # Not fused: torch's fused SGD fails where some parameters of a group have a momentum and
        # others get their first gradient.
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def groups_with_rates(method: Method, config: OptimConfig) -> list[dict[str, Any]]:
    """Make a parameter group with ``params``, ``name`` and ``peak_lr`` for each entry and rate.

    The entries are those of :meth:`toco.methods.Method.parameter_groups`. With a ``layer_decay`` of
    1 that is one group for each of them that is not empty; with SGD it is two, weights and biases.

    Args:
        method: The method, whose :meth:`toco.methods.Method.layers` a ``layer_decay`` below 1 needs
            and whose names of parameters tell biases.
        config: The settings.

    Raises:
        ValueError: ``layer_decay`` is below 1 and the method names no layers.
    """
    layers = method.layers()
    if config.layer_decay < 1 and not layers:
        raise ValueError(
            f"optim.layer_decay is {config.layer_decay}, but this method or backbone names no "
            "layers; set it to 1."
        )
    multipliers = {
        id(parameter): config.layer_decay ** (len(layers) - 1 - index)
        for index, layer in enumerate(layers)
        for parameter in layer
    }
    if isinstance(config, SgdConfig):
        for name, parameter in method.named_parameters():
            if name.rpartition(".")[2] == "bias":
                key = id(parameter)
                multipliers[key] = multipliers.get(key, 1.0) * config.bias_lr_multiplier
    settings: list[dict[str, Any]] = []
    for name, parameters in method.parameter_groups().items():
        by_multiplier: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_multiplier.setdefault(multipliers.get(id(parameter), 1.0), []).append(parameter)
        peak_lr = config.lr * _multiplier(name, config)
        settings += [
            {"params": group, "name": name, "peak_lr": peak_lr * multiplier}
            for multiplier, group in by_multiplier.items()
        ]
    return settings


def freeze_layers(layers: Sequence[Sequence[nn.Parameter]], config: OptimConfig) -> None:
    """Freeze the first ``frozen_layers`` layers of a backbone.

    Args:
        layers: Parameters of the backbone from the input to the output
            (:meth:`toco.methods.Method.layers`).
        config: The settings.

    Raises:
        ValueError: The backbone has fewer layers.
    """
    if config.frozen_layers > len(layers):
        raise ValueError(
            f"optim.frozen_layers is {config.frozen_layers}, but this method or backbone names "
            f"{len(layers)} layers; expected 0 to {len(layers)}."
        )
    for layer in layers[: config.frozen_layers]:
        for parameter in layer:
            parameter.requires_grad_(False)


def set_lr(
    optimizer: torch.optim.Optimizer, step: int, num_steps: int, config: OptimConfig
) -> None:
    """Set the learning rate of every group to that of ``step``."""
    factor = lr_factor(step, num_steps, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def fill_missing_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Set missing gradients to zero, for AdamW.

    AdamW then decays these weights and counts the step, as in the official ToCo. The official code
    computes a term before its first step and multiplies it by zero; this code skips the term.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _multiplier(name: str, config: OptimConfig) -> float:
    return config.head_lr_multiplier if name in _HEAD_GROUPS else 1.0
