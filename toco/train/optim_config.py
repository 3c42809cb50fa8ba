"""Settings of the two optimizers, AdamW and SGD, and of their learning rates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from toco.config import Config


class BaseOptimConfig(Config, ABC):
    """Settings that every optimizer has.

    Attributes:
        name: ``adamw`` or ``sgd``.
        lr: Peak rate of the backbone, per step.
        head_lr_multiplier: Rate of classifiers, projection and decoder, in multiples of ``lr``.
        layer_decay: Rate of each block of the backbone, in multiples of the next block's. The last
            block has ``lr``, and the embedding counts as the block before the first. 1 is the
            official recipe. Lower values keep what pretraining taught the first blocks, as in the
            fine-tuning of BEiT and MAE.
        frozen_layers: Number of first layers that keep their initial weights, in the order of
            :meth:`toco.backbones.Backbone.layers`. 1 freezes the embedding, and ``n`` the first
            ``n - 1`` blocks, too. A step is faster, because no gradient passes through these
            layers.
        weight_decay: Weight decay; as officially, on norms and biases, too.
        warmup_steps: Steps of linear warm-up.
        warmup_ratio: Fraction of ``lr`` at which the warm-up starts.
    """

    name: str
    lr: float = Field(gt=0)
    head_lr_multiplier: float = Field(default=10.0, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    frozen_layers: int = Field(default=0, ge=0)
    weight_decay: float = Field(ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    warmup_ratio: float = Field(default=1e-6, ge=0, le=1)

    def check(self, num_steps: int) -> None:
        """Check the settings against the number of updates of the run.

        Raises:
            ValueError: A step of the schedule is not below ``num_steps``.
        """
        if self.warmup_steps >= num_steps:
            raise ValueError(
                f"optim.warmup_steps {self.warmup_steps} is not below num_steps {num_steps}; "
                "shorten the warm-up"
            )

    @abstractmethod
    def num_moments(self) -> int:
        """Return how many tensors of a parameter's size the optimizer keeps for it."""


class AdamWConfig(BaseOptimConfig):
    """AdamW with linear warm-up and polynomial decay; the defaults are ToCo's.

    The weight decay is decoupled from the gradient. A parameter without a gradient counts as one
    with the gradient zero: it decays, and its step counts.

    Attributes:
        betas: Decay rates of the two moments.
        epsilon: Added to the denominator of the update.
        power: Exponent of the polynomial decay. It counts from step 0, so the rate jumps down when
            the warm-up ends.
    """

    name: Literal["adamw"] = "adamw"
    lr: float = Field(default=6e-5, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    warmup_steps: int = Field(default=1500, ge=0)
    power: float = Field(default=0.9, gt=0)

    def num_moments(self) -> int:
        """See the base class."""
        return 2


class SgdConfig(BaseOptimConfig):
    """SGD with momentum, whose rate drops at given steps; the defaults are RCA's.

    The weight decay is a part of the gradient. A parameter without a gradient is skipped: it does
    not decay, and its momentum stays as it is.

    Attributes:
        bias_lr_multiplier: Rate of every parameter named ``bias``, in multiples of the rate that
            the weights beside it have. The shift of a batch norm is named so, its scale is not.
        momentum: Fraction of the momentum that the next step keeps. The first gradient of a
            parameter is its first momentum.
        nesterov: Whether the gradient is taken ahead, as by Nesterov.
        drop_steps: Steps (0-based) from whose update on the rate is ``drop_factor`` times that
            before. They ascend and come after the warm-up.
        drop_factor: Factor of each drop.
    """

    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    bias_lr_multiplier: float = Field(default=2.0, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    drop_steps: tuple[int, ...] = ()
    drop_factor: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _fit(self) -> SgdConfig:
        if self.nesterov and not self.momentum:
            raise ValueError(
                "nesterov: expected a momentum above 0, got 0; set nesterov=false or a momentum"
            )
        if any(step >= later for step, later in pairwise((self.warmup_steps, *self.drop_steps))):
            raise ValueError(
                "drop_steps: expected ascending steps, the first after warmup_steps "
                f"{self.warmup_steps}, got {self.drop_steps}"
            )
        return self

    def check(self, num_steps: int) -> None:
        """See the base class."""
        super().check(num_steps)
        if self.drop_steps and self.drop_steps[-1] >= num_steps:
            raise ValueError(
                f"optim.drop_steps {self.drop_steps} are not all below num_steps {num_steps}; "
                "leave out those that the training does not reach"
            )

    def num_moments(self) -> int:
        """See the base class."""
        return 1 if self.momentum else 0


_BY_NAME: dict[str, type[AdamWConfig] | type[SgdConfig]] = {"adamw": AdamWConfig, "sgd": SgdConfig}


def _named(value: object) -> object:
    """Validate settings by the class that ``name`` chooses.

    Configs of toco 0.6 and before have no name. They are AdamW's.
    """
    if isinstance(value, BaseOptimConfig):
        return value
    name = value.get("name", "adamw") if isinstance(value, dict) else "adamw"
    if not isinstance(name, str) or name not in _BY_NAME:
        raise ValueError(f"{name!r} is not one of the optimizers: {', '.join(_BY_NAME)}")
    return _BY_NAME[name].model_validate(value)


OptimConfig = Annotated[AdamWConfig | SgdConfig, BeforeValidator(_named)]
"""Type of the field ``optim``: the settings of one of the optimizers, chosen by ``name``."""
