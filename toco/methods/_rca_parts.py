"""RCA's parts on the patch grid: regions, their contrast, the memory and the aggregation.

RCA and ToCo build them from the same settings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from toco.cam.labels import scale_box
from toco.cam.region_pooling import piled_masks, pool_regions, region_masks
from toco.heads.aggregation import Aggregation, LinearAggregation, SoftmaxAggregation
from toco.heads.class_maps import ConvEmbedding, PointEmbedding
from toco.heads.memory import RegionMemory
from toco.losses.region_contrast import choose_partners, region_contrast_loss
from toco.methods._method import mean_over_groups
from toco.methods._rca_parts_config import AggregationConfig, MemoryConfig, RegionContrastConfig
from toco.tensors import Batch


class Draws(NamedTuple):
    """Random numbers of a step for each image of this rank and each class.

    Attributes:
        image: Uniform number that chooses the image of a region's partner.
        partner: Uniform number that chooses the partner among the regions of that image.
        own_share: Share of the region in the mixture with its partner.
    """

    image: Float[Tensor, "b k"]
    partner: Float[Tensor, "b k"]
    own_share: Float[Tensor, "b k"]


class Update(NamedTuple):
    """What the regions of a step write to the memory."""

    pooled: Float[Tensor, "b m c"]
    classes: Integer[Tensor, "b m"]
    is_sure: Bool[Tensor, "b m"]


class RcaParts(nn.Module):
    """Memory, embedding and aggregation of RCA.

    Args:
        contrast: Settings of the contrast.
        memory: Settings of the memory.
        aggregation: Settings of the aggregation.
        final_width: Channels of the final features.
        aux_width: Channels of the auxiliary features.
        num_foreground_classes: Classes without the background.

    Attributes:
        memory: The memory; all its state is in buffers.
        embedding: Head of the contrast's queries; ``None`` where features are contrasted.
        aggregation: ``None`` without one.
    """

    memory: RegionMemory
    embedding: ConvEmbedding | PointEmbedding | None
    aggregation: Aggregation | None

    def __init__(
        self,
        contrast: RegionContrastConfig,
        memory: MemoryConfig,
        aggregation: AggregationConfig,
        final_width: int,
        aux_width: int,
        num_foreground_classes: int,
    ) -> None:
        super().__init__()
        self._contrast, self._memory, self._aggregation = contrast, memory, aggregation
        self._num_classes = num_foreground_classes
        width = aux_width if memory.tokens == "aux" else final_width
        self.embedding = None
        if contrast.weight > 0 and contrast.embedding != "none":
            kind = ConvEmbedding if contrast.embedding == "convs" else PointEmbedding
            self.embedding = kind(width)
        self.aggregation = build_aggregation(aggregation, final_width)
        self.memory = RegionMemory(
            num_foreground_classes,
            memory.slots,
            width,
            aggregation.centroids if aggregation.kind != "none" else 0,
            memory.momentum,
            memory.start,
        )

    def begin_step(
        self, batch: Batch, step: int, generator: torch.Generator, with_contrast: bool
    ) -> Draws | None:
        """Cluster the memory if that is due, and draw the random numbers of the contrast.

        Numbers are drawn for the global batch, of which the rank takes its part, and every rank
        clusters the same memory with the same numbers. Neither depends on the number of ranks. All
        ranks take the centroids of the first.
        """
        aggregation = self._aggregation
        is_due = aggregation.kind != "none" and step > 0 and step % aggregation.every == 0
        if not (is_due or with_contrast):
            return None
        seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
        random = np.random.default_rng(int(seed))
        if is_due:
            self.memory.cluster_(aggregation.num_starts, aggregation.max_iterations, random)
            # Devices of different kinds may round differently.
            _take_from_first(self.memory.centroids)
        if not with_contrast:
            return None
        shard, num_images = batch.shard, len(batch.images)
        shape = (shard.world_size * num_images, self._num_classes)
        uniform = random.random((2, *shape))
        beta = self._contrast.beta
        shares = np.ones(shape) if beta is None else random.beta(beta, beta, shape)
        draws = np.concatenate([uniform, shares[None]])[:, shard.rank * num_images :][
            :, :num_images
        ]
        device = batch.images.device
        on_host = torch.from_numpy(draws).to(torch.promote_types(batch.images.dtype, torch.float32))
        on_host = on_host.pin_memory() if device.type == "cuda" else on_host
        return Draws(*on_host.to(device, non_blocking=True))

    def fuse(self, features: Float[Tensor, "b c p q"]) -> Float[Tensor, "b _ p q"]:
        """Aggregate the memory's centroids into the final features of the classifier."""
        if self.aggregation is None:
            return features
        fused: Tensor = self.aggregation(features, self.memory.centroids, self.memory.is_clustered)
        return fused

    def contrast(
        self,
        final: Float[Tensor, "b c p q"],
        aux: Float[Tensor, "b d p q"],
        class_maps: Float[Tensor, "b k p q"],
        class_logits: Float[Tensor, "b k"],
        size_px: tuple[int, int],
        class_labels: Float[Tensor, "b k"],
        present: Integer[Tensor, "b m"],
        valid_box: Integer[Tensor, "b 4"],
        draws: Draws | None,
        group_size: int,
        autocast: torch.autocast,
    ) -> tuple[Tensor | None, Update, dict[str, Tensor]]:
        """Compute the contrast of the regions and their update of the memory.

        Args:
            final: Final features.
            aux: Features of the auxiliary block.
            class_maps: Coarse maps of all classes, of which regions are made.
            class_logits: Logits that say which regions are sure.
            size_px: Rows and columns of the images.
            class_labels: Labels of the images.
            present: Classes of each image.
            valid_box: Area of each image, pixels.
            draws: Numbers from :meth:`begin_step`; ``None`` at steps without the contrast.
            group_size: Images of a loss group: partners are of the same group, and so are the
                statistics of the embedding's batch norm.
            autocast: Context of the embedding; everything else is computed in the features' type.

        Returns:
            The loss or ``None``, the update for :meth:`update_`, and numbers to log.
        """
        features = aux if self._memory.tokens == "aux" else final
        grid = (features.shape[2], features.shape[3])
        box = scale_box(valid_box, size_px, grid)
        masks = region_masks(class_maps, class_labels, present, self._contrast.scores, box)
        areas = masks.sum(dim=(2, 3)).to(features.dtype)
        is_region = areas > 0
        embedded = features
        holds_embedding = self._memory.holds == "embedding"
        if self.embedding is not None and (draws is not None or holds_embedding):
            with autocast:
                groups = [self.embedding(group) for group in features.split(group_size)]
            embedded = torch.cat(groups).to(features.dtype)
        loss = None
        if draws is not None:
            loss = mean_over_groups(
                self._loss_of_group,
                group_size,
                pool_regions(embedded, masks),
                is_region,
                present,
                *(draw.gather(1, present) for draw in draws),
            )
        is_sure = is_region & (class_logits.gather(1, present).sigmoid() > self._memory.threshold)
        with torch.no_grad():
            held = embedded if holds_embedding else features
            pooled_over = masks if self._memory.own_masks else piled_masks(masks, is_sure)
            pooled = pool_regions(held, pooled_over, areas)
        filled = self.memory.filled.sum() / (self._num_classes * self._memory.slots)
        counts = {
            "regions": is_region.sum(dim=1).to(areas.dtype).mean(),
            "sure_regions": is_sure.sum(dim=1).to(areas.dtype).mean(),
            "memory_filled": filled.to(areas.dtype),
        }
        return loss, Update(pooled, present, is_sure), counts

    def join(self, groups: dict[str, list[nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
        """Add the parameters of the parts to a method's groups."""
        joined = {name: list(group) for name, group in groups.items()}
        if self.embedding is not None:
            joined["heads"] += self.embedding.parameters()
        if self.aggregation is not None:
            joined[self._aggregation.rate] += self.aggregation.parameters()
        return joined

    @torch.no_grad()
    def update_(self, update: Update) -> None:
        """Update the memory with the regions of all ranks, in the order of the global batch."""
        missing = self._num_classes - update.classes.shape[1]
        pooled, classes, is_sure = (
            _of_all_ranks(part)
            for part in (
                # Ranks may have images with different numbers of classes.
                F.pad(update.pooled, (0, 0, 0, missing)),
                F.pad(update.classes, (0, missing)),
                F.pad(update.is_sure.to(torch.uint8), (0, missing)),
            )
        )
        self.memory.update_(pooled.flatten(0, 1), classes.flatten(), is_sure.flatten() > 0)

    def _loss_of_group(
        self,
        embeddings: Float[Tensor, "b m c"],
        is_region: Bool[Tensor, "b m"],
        classes: Integer[Tensor, "b m"],
        image_draws: Float[Tensor, "b m"],
        partner_draws: Float[Tensor, "b m"],
        own_share: Float[Tensor, "b m"],
    ) -> Float[Tensor, ""]:
        partners, has_partner = choose_partners(
            is_region, classes, image_draws, partner_draws, self._contrast.partner == "other"
        )
        return region_contrast_loss(
            embeddings,
            is_region,
            classes,
            partners,
            torch.where(has_partner, own_share, 1.0),
            self.memory.slots,
            self.memory.is_filled(),
            self._contrast.temperature,
        )


def build_aggregation(config: AggregationConfig, width: int) -> Aggregation | None:
    """Build the aggregation of features with ``width`` channels; ``None`` without one."""
    if config.kind == "none":
        return None
    if config.kind == "linear":
        return LinearAggregation(width)
    return SoftmaxAggregation(width, config.temperature)


def fused_width(config: AggregationConfig, width: int) -> int:
    """Channels of the features that the classifier gets."""
    return 2 * width if config.kind == "softmax" else width


def _take_from_first(buffer: Tensor) -> None:
    """Overwrite a buffer with that of rank 0."""
    if dist.is_initialized():
        dist.broadcast(buffer, src=0)


def _of_all_ranks(values: Tensor) -> Tensor:
    """Join the values of all ranks, which have equal shapes, along the first axis."""
    if not dist.is_initialized():
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
