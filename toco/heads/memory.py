"""Memory of region features: a ring of slots for every class, and the clusters of the slots."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from numpy.random import Generator
from torch import Tensor, nn

from toco.heads.clustering import cluster

MemoryStart = Literal["empty", "noise"]


class RegionMemory(nn.Module):
    """Slots of pooled region features for every class, with a moving average per slot.

    A class's slots are a ring: each update moves the slot at the pointer towards one region, then
    the pointer moves on. Everything is in persistent buffers, so a checkpoint holds it.

    Args:
        num_classes: Classes without the background.
        num_slots: Slots of a class.
        width: Channels of a slot.
        num_centroids: Clusters of a class; 0 for a memory without clusters.
        momentum: Weight of the old value of a slot.
        start: ``empty``: the first update of a slot replaces it, and only filled slots count.
            ``noise``: slots and centroids begin as standard normal noise and count from the start.
            This is official; at momentum 0.99 most of a slot stays noise to the end.

    Source: RCA (Zhou et al., CVPR 2022), and the official code.
    """

    slots: Float[Tensor, "k n c"]
    pointer: Integer[Tensor, " k"]
    filled: Integer[Tensor, " k"]
    centroids: Float[Tensor, "k j c"]
    is_clustered: Bool[Tensor, " k"]

    def __init__(
        self,
        num_classes: int,
        num_slots: int,
        width: int,
        num_centroids: int,
        momentum: float,
        start: MemoryStart,
    ) -> None:
        super().__init__()
        self.num_slots, self.momentum = num_slots, momentum
        new = torch.randn if start == "noise" else torch.zeros
        is_full = start == "noise"
        self.register_buffer("slots", new(num_classes, num_slots, width))
        self.register_buffer("pointer", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("filled", torch.full((num_classes,), is_full * num_slots))
        self.register_buffer("centroids", new(num_classes, num_centroids, width))
        self.register_buffer("is_clustered", torch.full((num_classes,), is_full))

    def is_filled(self) -> Bool[Tensor, "k n"]:
        """Whether each slot counts."""
        return torch.arange(self.num_slots, device=self.filled.device) < self.filled[:, None]

    @torch.no_grad()
    def update_(
        self,
        pooled: Float[Tensor, "r c"],
        classes: Integer[Tensor, " r"],
        is_sure: Bool[Tensor, " r"],
    ) -> None:
        """Move slots towards the sure regions, in their order.

        Args:
            pooled: Features of the regions. The order decides which slot a region reaches: images
                in the order of the batch, classes ascending.
            classes: Class (0-based) of each region.
            is_sure: Whether the region updates the memory.
        """
        # In parts of as many regions as a class has slots, no slot is met twice. All regions of a
        # part can then be written at once, and no value has to be read on the host.
        for part in torch.arange(len(pooled), device=pooled.device).split(self.num_slots):
            self._update_part_(pooled[part].to(self.slots.dtype), classes[part], is_sure[part])

    def _update_part_(self, pooled: Tensor, classes: Tensor, is_sure: Tensor) -> None:
        sure_of_class = F.one_hot(classes, len(self.slots)) * is_sure[:, None]
        earlier = sure_of_class.cumsum(dim=0).gather(1, classes[:, None])[:, 0] - is_sure.long()
        slot = (self.pointer[classes] + earlier) % self.num_slots
        # Until all slots are filled, the pointer names the first empty one.
        is_old = self.filled[classes] + earlier >= self.num_slots
        new_share = 1 - self.momentum * is_old.to(pooled.dtype)[:, None]
        change = new_share * (pooled - self.slots[classes, slot])
        # A region that is not sure adds zero: it may name the slot of the sure region after it.
        change = torch.where(is_sure[:, None], change, 0.0)
        self.slots.index_put_((classes, slot), change, accumulate=True)
        num_updates = sure_of_class.sum(dim=0)
        self.filled.copy_((self.filled + num_updates).clamp(max=self.num_slots))
        self.pointer.copy_((self.pointer + num_updates) % self.num_slots)

    @torch.no_grad()
    def cluster_(self, num_starts: int, max_iterations: int, random: Generator) -> None:
        """Replace the centroids by those of the slots; a class without slots keeps its own."""
        centroids = cluster(
            self.slots,
            self.is_filled(),
            self.centroids.shape[1],
            num_starts,
            max_iterations,
            random,
        )
        has_slots = self.filled > 0
        self.centroids.copy_(torch.where(has_slots[:, None, None], centroids, self.centroids))
        self.is_clustered.logical_or_(has_slots)
