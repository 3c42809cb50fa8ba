"""Settings of RCA's parts, which RCA and ToCo share. Nothing here needs torch.

RCA is "Regional Semantic Contrast and Aggregation for Weakly Supervised Semantic Segmentation"
(Zhou et al., CVPR 2022). Where its code departs from the paper, a setting has both ways. Where the
code has a fault, the default is the paper's way; elsewhere it is the code's.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from toco.config import Config
from toco.methods._config import CamLabelsConfig, Term


class RegionContrastConfig(Term):
    """Contrast of each region with the memory.

    Attributes:
        weight: Weight of the loss, a mean over the images. The official loss is the sum over the
            images of a GPU, with 0.01: 0.08 of the mean over eight images.
        start_step: First step (0-based). Earlier, the memory fills and the embedding does not
            learn.
        temperature: Tau.
        beta: Regions are mixed in pairs, with shares from Beta(beta, beta). ``null`` mixes nothing.
        partner: ``other``: another image of the loss group and another class, as in the paper. A
            region without such a partner is not mixed. ``any``: every image of the group and every
            class, the region itself included (official). Without ``beta`` it has no effect.
        embedding: What a region contrasts: ``convs``, two 3x3 convolutions with batch norm, as in
            the code; ``points``, two 1x1 convolutions; ``none``, the features, as in the paper.
        scores: What a region compares with its mean: ``softmax`` over the classes, as in the code;
            ``raw``, the coarse map, as in the paper.
    """

    weight: float = Field(default=0.08, ge=0)
    temperature: float = Field(default=0.07, gt=0)
    beta: float | None = Field(default=8.0, gt=0)
    partner: Literal["other", "any"] = "other"
    embedding: Literal["convs", "points", "none"] = "convs"
    scores: Literal["softmax", "raw"] = "softmax"


class MemoryConfig(Config):
    """The memory of regions.

    Attributes:
        slots: Slots of a class.
        momentum: Weight of the old value of a slot.
        threshold: A region updates the memory if the image contains its class and the classifier's
            probability exceeds this.
        start: ``empty``: a slot is filled by its first region, and only filled slots count.
            ``noise``: slots and centroids begin as noise and count (official). With 500 slots and
            momentum 0.99, two thirds of the memory are still noise after 30 epochs of VOC.
        holds: ``features``, as in the code; the embedding is then contrasted with features, which
            are another space. ``embedding``: what the contrast takes.
        tokens: ``final``: features are those of the last block. ``aux``: those of the auxiliary
            block, which are less alike within an image.
        own_masks: Every region is pooled over its own mask. ``false``: over what earlier sure
            classes of the image leave, a fault of the official code.
    """

    slots: int = Field(default=500, ge=1)
    momentum: float = Field(default=0.99, ge=0, le=1)
    threshold: float = Field(default=0.7, ge=0, le=1)
    start: Literal["empty", "noise"] = "empty"
    holds: Literal["features", "embedding"] = "features"
    tokens: Literal["final", "aux"] = "final"
    own_masks: bool = True


class AggregationConfig(Config):
    """Aggregation of the memory's centroids into the features of the classifier.

    Attributes:
        kind: ``linear``, the code's learnt projections without softmax; ``softmax``, the paper's
            attention; ``none``.
        temperature: Of ``softmax``. ``null`` takes products of features, as the paper does; a
            number takes cosines divided by it.
        centroids: Clusters of a class.
        every: Steps between two clusterings; the first is after this many steps. Official is an
            epoch, 1323 steps of VOC.
        num_starts: Seedings of a clustering, of which the best counts.
        max_iterations: Most iterations of a clustering.
        rate: Learning rate of ``linear``: that of the ``backbone``, as in the code, or that of
            other new parameters.
    """

    kind: Literal["none", "linear", "softmax"] = "linear"
    temperature: float | None = Field(default=None, gt=0)
    centroids: int = Field(default=10, ge=1)
    every: int = Field(default=1323, ge=1)
    num_starts: int = Field(default=10, ge=1)
    max_iterations: int = Field(default=300, ge=1)
    rate: Literal["backbone", "heads"] = "backbone"

    @model_validator(mode="after")
    def _temperature_has_an_effect(self) -> AggregationConfig:
        if self.temperature is not None and self.kind != "softmax":
            raise ValueError(
                f"temperature is {self.temperature}, but kind is {self.kind}, which has no "
                "softmax; set temperature to null"
            )
        return self


class RcaPartsConfig(CamLabelsConfig):
    """Settings of a method that may have RCA's parts.

    Attributes:
        region_contrast: Contrast of regions with the memory.
        region_memory: The memory. Without contrast and aggregation there is none.
        aggregation: Aggregation of the memory's clusters into the features of the classifier.
    """

    region_contrast: RegionContrastConfig = RegionContrastConfig(weight=0.0)
    region_memory: MemoryConfig = MemoryConfig()
    aggregation: AggregationConfig = AggregationConfig(kind="none")

    @model_validator(mode="after")
    def _spaces_agree(self) -> RcaPartsConfig:
        kind = self.aggregation.kind
        if self.region_memory.holds == "embedding" and self.region_contrast.embedding == "none":
            raise ValueError(
                "region_memory.holds is embedding, but region_contrast.embedding is none; set it "
                "to features, which are contrasted then"
            )
        if kind == "none":
            return self
        if self.region_memory.tokens == "aux":
            raise ValueError(
                f"aggregation.kind is {kind}, which mixes centroids into the final features, but "
                "region_memory.tokens is aux; set it to final, or aggregation.kind to none"
            )
        if self.region_memory.holds == "embedding":
            raise ValueError(
                f"aggregation.kind is {kind}, which mixes centroids into features, but "
                "region_memory.holds is embedding; set it to features, or aggregation.kind to none"
            )
        return self

    def has_memory(self) -> bool:
        """Whether the contrast or the aggregation needs the memory."""
        return self.region_contrast.weight > 0 or self.aggregation.kind != "none"

    def check_maps(self, weight: str) -> None:
        """Check that the maps which make the regions are trained.

        Args:
            weight: Name of the weight of the loss that trains them.

        Raises:
            ValueError: They are not, but there is a memory.
        """
        if getattr(self, weight) > 0 or not self.has_memory():
            return
        used = (
            f"region_contrast.weight is {self.region_contrast.weight}"
            if self.region_contrast.weight
            else f"aggregation.kind is {self.aggregation.kind}"
        )
        raise ValueError(
            f"{weight} is 0, so the maps that make the regions are untrained, but {used}; set "
            "region_contrast.weight to 0 and aggregation.kind to none"
        )


def inert_contrast(contrast: RegionContrastConfig, step: int) -> frozenset[str]:
    """Paths below ``method.`` that have no effect before the contrast's first step.

    The embedding has an effect: its initial weights come from the run's seed.
    """
    if contrast.weight == 0 or contrast.start_step < step:
        return frozenset()
    names = ("weight", "start_step", "temperature", "beta", "partner")
    return frozenset(f"region_contrast.{name}" for name in names)


def late_contrast(contrast: RegionContrastConfig) -> int | None:
    """First step of the contrast; ``None`` where it joins at once or never."""
    return contrast.start_step or None if contrast.weight > 0 else None


def earlier(*steps: int | None) -> int | None:
    """Return the first of the steps at which terms join, or ``None`` where none joins late."""
    return min((step for step in steps if step is not None), default=None)
