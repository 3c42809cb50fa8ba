"""Stochastic depth, with draws that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from toco.types import Shard


@dataclass(frozen=True, slots=True)
class _Step:
    """A training step: its generator, and its images on this rank."""

    generator: torch.Generator
    num_images: int
    shard: Shard


class StochasticDepth(nn.Module):
    """In training, drop a residual path for random images, and scale it up for the others.

    It computes what timm's ``DropPath`` computes. timm draws from the global random state; this
    class draws from the generator of the step (:func:`drawing`), so that a resumed training is the
    same one. It draws for the global batch, and each rank takes the draws of its own images.

    A pass holds all images of the step for each of its views: first those of one view, then those
    of the next.

    Source: Huang et al., "Deep networks with stochastic depth", ECCV 2016; in ViTs, Touvron et al.,
    "Training data-efficient image transformers", ICML 2021.

    Args:
        drop_probability: Probability that the path of an image is dropped, in [0, 1).
    """

    def __init__(self, drop_probability: float) -> None:
        super().__init__()
        self.drop_probability = drop_probability
        self.step: _Step | None = None

    def forward(self, x: Float[Tensor, "images ..."]) -> Float[Tensor, "images ..."]:
        """Return ``x`` times 0 or ``1 / (1 - drop_probability)``; ``x`` itself in evaluation.

        Raises:
            ValueError: The module is in training mode outside of a step, or the pass does not hold
                each image of the step equally often.
        """
        return x * self._factors(x) if self.training else x

    def _factors(self, x: Tensor) -> Tensor:
        if self.step is None:
            raise ValueError(
                "Stochastic depth draws from the generator of a training step, and none has begun. "
                "Put the network into evaluation mode, or enclose the pass in "
                "toco.backbones.drawing."
            )
        step, shard = self.step, self.step.shard
        num_views, rest = divmod(len(x), step.num_images)
        if rest:
            raise ValueError(
                f"A pass has {len(x)} images and the step {step.num_images}; stochastic depth "
                "expects all images of the step in each view of a pass. Pass them together, or set "
                "backbone.drop_path to 0."
            )
        # Like crop keys, they are drawn on the generator's device: the same on every machine.
        draws = torch.rand(
            num_views,
            shard.world_size * step.num_images,
            generator=step.generator,
            device=step.generator.device,
        )
        own = draws[:, shard.rank * step.num_images :][:, : step.num_images].flatten()
        keep_probability = 1 - self.drop_probability
        factors = (own < keep_probability).to(x.dtype).div_(keep_probability)
        # Pinned, because a copy from other memory would wait for all work queued on the device.
        factors = (factors.pin_memory() if x.is_cuda else factors).to(x.device, non_blocking=True)
        return factors.reshape(-1, *(1,) * (x.ndim - 1))


def replace_drop_paths(network: nn.Module) -> None:
    """Replace every ``DropPath`` of timm in ``network`` by a :class:`StochasticDepth`."""
    from timm.layers.drop import DropPath

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, StochasticDepth(child.drop_prob))


def stochastic_depths(network: nn.Module) -> list[StochasticDepth]:
    """List the modules of ``network`` for :func:`drawing`; empty where ``drop_path`` is 0."""
    return [module for module in network.modules() if isinstance(module, StochasticDepth)]


@contextmanager
def drawing(
    depths: Sequence[StochasticDepth],
    generator: torch.Generator,
    num_images: int,
    shard: Shard = Shard(),
) -> Iterator[None]:
    """Let ``depths`` draw from ``generator`` for the passes of one training step.

    Args:
        depths: The modules, from :func:`stochastic_depths`.
        generator: Source of the draws, in the same state on all ranks.
        num_images: Images of the step on this rank.
        shard: Part of the global batch that they are.
    """
    step = _Step(generator, num_images, shard)
    for depth in depths:
        depth.step = step
    try:
        yield
    finally:
        for depth in depths:
            depth.step = None
