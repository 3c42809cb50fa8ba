"""AdamW over the parameter groups of a method, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from toco.train.run_config import OptimConfig

_HEAD_GROUPS = frozenset({"heads", "decoder"})
"""Groups of new parameters, whose learning rate is ``head_lr_multiplier`` times ``lr``."""


def lr_factor(step: int, num_steps: int, config: OptimConfig) -> float:
    """Return the fraction of the peak rate at step ``step`` (0-based) of ``num_steps``.

    >>> round(lr_factor(1500, 20_000, OptimConfig()), 4)
    0.9322

    Source: official ``utils/optimizer.py`` (PolyWarmupAdamW).
    """
    if step < config.warmup_steps:
        return 1 - (1 - step / config.warmup_steps) * (1 - config.warmup_ratio)
    bounded_step = min(step, num_steps - 1)
    return float((1 - bounded_step / num_steps) ** config.power)


def build_optimizer(
    groups: Mapping[str, Sequence[nn.Parameter]],
    config: OptimConfig,
    layers: Sequence[Sequence[nn.Parameter]] = (),
) -> torch.optim.AdamW:
    """Build AdamW with the parameter groups of :func:`groups_with_rates`.

    Raises:
        ValueError: ``layer_decay`` is below 1 and there are no ``layers``.
    """
    return torch.optim.AdamW(
        groups_with_rates(groups, config, layers),
        lr=config.lr,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def groups_with_rates(
    groups: Mapping[str, Sequence[nn.Parameter]],
    config: OptimConfig,
    layers: Sequence[Sequence[nn.Parameter]] = (),
) -> list[dict[str, Any]]:
    """Make a parameter group with ``params``, ``name`` and ``peak_lr`` for each entry and rate.

    With a ``layer_decay`` of 1 that is a group for each non-empty entry of ``groups``.

    Args:
        groups: Trainable parameters by name (:meth:`toco.methods.Method.parameter_groups`).
        config: The settings.
        layers: Parameters of the backbone from the input to the output
            (:meth:`toco.methods.Method.layers`).

    Raises:
        ValueError: ``layer_decay`` is below 1 and there are no ``layers``.
    """
    if config.layer_decay < 1 and not layers:
        raise ValueError(
            f"optim.layer_decay is {config.layer_decay}, but this method or backbone names no "
            "layers; set it to 1."
        )
    decays = {
        id(parameter): config.layer_decay ** (len(layers) - 1 - index)
        for index, layer in enumerate(layers)
        for parameter in layer
    }
    settings: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        by_decay: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_decay.setdefault(decays.get(id(parameter), 1.0), []).append(parameter)
        peak_lr = config.lr * _multiplier(name, config)
        settings += [
            {"params": group, "name": name, "peak_lr": peak_lr * decay}
            for decay, group in by_decay.items()
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
    """Set missing gradients to zero.

    AdamW then decays these weights and counts the step, as in the official code. The official code
    computes a term before its first step and multiplies it by zero; this code skips the term.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _multiplier(name: str, config: OptimConfig) -> float:
    return config.head_lr_multiplier if name in _HEAD_GROUPS else 1.0
