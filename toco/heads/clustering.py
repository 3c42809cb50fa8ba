"""K-means of several sets of points at once."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from numpy.random import Generator
from torch import Tensor


def cluster(
    points: Float[Tensor, "k n c"],
    is_point: Bool[Tensor, "k n"],
    num_centroids: int,
    num_starts: int,
    max_iterations: int,
    random: Generator,
) -> Float[Tensor, "k j c"]:
    """Cluster each of ``k`` sets of points, and return the centroids of its best start.

    Lloyd's algorithm follows the seeding of k-means++, with several candidates for each seed. The
    best start has the least sum of squared distances. A set with fewer different points than
    centroids gets copies; a set without points gets zeros.

    Args:
        points: The sets.
        is_point: Which entries of ``points`` count.
        num_centroids: Centroids of each set.
        num_starts: Seedings of each set.
        max_iterations: Most iterations of a start.
        random: Source of the seedings.

    Source: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.
    """
    num_sets = len(points)
    # As many candidates as scikit-learn tries, whose k-means the official code calls.
    num_candidates = 2 + int(math.log(num_centroids))
    shape = (num_centroids, num_starts, num_sets, num_candidates)
    uniform = torch.from_numpy(random.random(shape))
    centroids = _seeds(points, is_point, uniform.to(points))
    weights = is_point.to(points.dtype)
    nearest = None
    for _ in range(max_iterations):
        former, nearest = nearest, _distances(points, centroids).argmin(dim=-1)
        # Tensors on ``meta`` have shapes alone, so their second iteration is the last.
        if former is not None and (points.is_meta or torch.equal(former, nearest)):
            break
        members = torch.nn.functional.one_hot(nearest, num_centroids).to(points.dtype)
        members = members * weights[..., None]
        sizes = members.sum(dim=2)
        means = torch.einsum("sknj,knc->skjc", members, points) / sizes.clamp(min=1)[..., None]
        # A centroid without points stays where it is.
        centroids = torch.where(sizes[..., None] > 0, means, centroids)
    inertia = (_distances(points, centroids).amin(dim=-1) * weights).sum(dim=-1)
    best = inertia.argmin(dim=0)
    return centroids[best, torch.arange(num_sets, device=points.device)]


def _seeds(
    points: Float[Tensor, "k n c"],
    is_point: Bool[Tensor, "k n"],
    uniform: Float[Tensor, "j s k candidates"],
) -> Float[Tensor, "s k j c"]:
    """Draw seeds: a point's probability grows with its squared distance to the earlier seeds.

    Of the candidates for a seed, the one that leaves the least sum of squared distances is taken.
    """
    counts = is_point.to(points.dtype)
    sets = torch.arange(len(points), device=points.device)[:, None]
    last = (is_point * torch.arange(points.shape[1], device=points.device)).amax(dim=1)[:, None]
    squared = counts.new_full((uniform.shape[1], *counts.shape), torch.inf)
    seeds: list[Tensor] = []
    for draw in uniform:
        # Uniform for the first seed, and where no point differs from the seeds: these are copies.
        chance = torch.where(squared.isinf(), 1.0, squared) * counts
        is_exhausted = chance.sum(dim=-1, keepdim=True) == 0
        cumulated = torch.where(is_exhausted, counts, chance).cumsum(dim=-1)
        index = torch.searchsorted(cumulated, draw * cumulated[..., -1:], right=True)
        # A draw that rounds to 1 would name an entry behind the last point.
        candidates = points[sets, torch.minimum(index, last)]
        left = torch.minimum(squared[..., None], _distances(points, candidates))
        potential = (left * counts[..., None]).sum(dim=2)
        best = potential.argmin(dim=-1)[..., None, None]
        seeds.append(candidates.gather(2, best.expand(-1, -1, 1, points.shape[2]))[:, :, 0])
        squared = left.gather(3, best.expand(-1, -1, points.shape[1], 1))[..., 0]
    return torch.stack(seeds, dim=2) * is_point.any(dim=1)[:, None, None]


def _distances(
    points: Float[Tensor, "k n c"], centroids: Float[Tensor, "s k j c"]
) -> Float[Tensor, "s k n j"]:
    """Squared Euclidean distances."""
    # One start at a time: torch would copy the points for each.
    return torch.stack(
        [
            torch.cdist(points, of_start, compute_mode="donot_use_mm_for_euclid_dist").square()
            for of_start in centroids
        ]
    )
