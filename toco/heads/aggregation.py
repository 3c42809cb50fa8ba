"""Aggregation: every patch takes in a mixture of the classes' centroids.

``j`` counts the centroids of a class.

Source: RCA (Zhou et al., CVPR 2022), and the official code, which computes something else than the
paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from toco.heads.class_maps import start_official


class Aggregation(nn.Module, ABC):
    """Base of the aggregations."""

    @abstractmethod
    def forward(
        self,
        features: Float[Tensor, "b c p q"],
        centroids: Float[Tensor, "k j c"],
        is_clustered: Bool[Tensor, " k"],
    ) -> Float[Tensor, "b _ p q"]:
        """Mix centroids into the features. No gradient reaches the centroids.

        Args:
            features: Features on the patch grid.
            centroids: Centroids of every class.
            is_clustered: Classes whose centroids count.
        """


class LinearAggregation(Aggregation):
    """The official aggregation: learnt projections without a softmax.

    A patch f has the query q = Wq f + bq, a centroid the key k = Wk c + bk and the value v = Wv c +
    bv. The context of the patch is the sum of (q . k) v over all centroids, times the number of
    classes over the number of centroids of a class. The result is Wp [f; Wa context + ba] + bp. It
    is therefore an affine function of f, whose matrix depends on the centroids.

    Args:
        width: Channels of features and centroids.

    Source: official RCA code. Its factor has the literal 20, the classes of VOC.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(width, width, 1)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.context = nn.Conv2d(width, width, 1)
        self.project = nn.Conv2d(2 * width, width, 1)
        start_official(self.children())

    def forward(
        self,
        features: Float[Tensor, "b c p q"],
        centroids: Float[Tensor, "k j c"],
        is_clustered: Bool[Tensor, " k"],
    ) -> Float[Tensor, "b c p q"]:
        """See the base class."""
        context = self.context_of(features, centroids, is_clustered)
        fused: Tensor = self.project(torch.cat([features, self.context(context)], dim=1))
        return fused

    def context_of(
        self,
        features: Float[Tensor, "b c p q"],
        centroids: Float[Tensor, "k j c"],
        is_clustered: Bool[Tensor, " k"],
    ) -> Float[Tensor, "b c p q"]:
        """Sum the centroids' values, weighted by the products of query and keys."""
        num_classes, per_class, _ = centroids.shape
        counts = is_clustered.to(features.dtype).repeat_interleave(per_class)[:, None]
        centroids = centroids.detach().flatten(0, 1).to(features.dtype)
        # Without a softmax the sum over centroids needs no query: it is one matrix.
        matrix = (self.value(centroids) * counts).T @ self.key(centroids)
        context = torch.einsum("vc,bcpq->bvpq", matrix, self.query(features))
        return context * (num_classes / per_class)


class SoftmaxAggregation(Aggregation):
    """The aggregation of the paper: attention over the centroids, without weights.

    A patch's context is the mean of all centroids, weighted by the softmax of their products with
    the patch. The result is the patch followed by its context.

    Args:
        width: Channels of features and centroids.
        temperature: ``None`` takes the products themselves, as the paper does. A number takes
            cosines divided by it, for features whose products are so large that one centroid gets
            everything.

    Source: RCA, the aggregation with S = softmax(F Q^T).
    """

    def __init__(self, width: int, temperature: float | None) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self,
        features: Float[Tensor, "b c p q"],
        centroids: Float[Tensor, "k j c"],
        is_clustered: Bool[Tensor, " k"],
    ) -> Float[Tensor, "b _ p q"]:
        """See the base class."""
        return torch.cat([features, self.context_of(features, centroids, is_clustered)], dim=1)

    def context_of(
        self,
        features: Float[Tensor, "b c p q"],
        centroids: Float[Tensor, "k j c"],
        is_clustered: Bool[Tensor, " k"],
    ) -> Float[Tensor, "b c p q"]:
        """Average the centroids by attention; zeros while no class has centroids."""
        per_class = centroids.shape[1]
        centroids = centroids.detach().flatten(0, 1).to(features.dtype)
        counts = is_clustered.repeat_interleave(per_class)[:, None, None]
        if self.temperature is None:
            products = torch.einsum("bcpq,jc->bjpq", features, centroids)
        else:
            products = torch.einsum(
                "bcpq,jc->bjpq", F.normalize(features, dim=1), F.normalize(centroids, dim=1)
            )
            products = products / self.temperature
        # The most negative number, not minus infinity: while no class counts, all are equal.
        products = products.masked_fill(~counts, torch.finfo(products.dtype).min)
        affinity = products.softmax(dim=1) * counts
        return torch.einsum("bjpq,jc->bcpq", affinity, centroids)
