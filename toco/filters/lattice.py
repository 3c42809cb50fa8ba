"""Gaussian filters on the permutohedral lattice: the approximation that the official ToCo is trained and tested with.

Pixels are points in d dimensions: five (position and colour) for the bilateral filter, two for the
Gaussian of position alone. The lattice divides that space into simplices; each point spreads its
value over the d + 1 vertices of its simplex (splat), neighbouring vertices are averaged along the d
+ 1 lattice directions in turn (blur), and each point reads its vertices back with the same weights
(slice).

Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010, with the constants of Kraehenbuehl's implementation that the official code
compiles: vertices that no pixel touches do not exist, so what is blurred onto them is lost
(together with the constants 0.4 to 0.6 of the Gaussian sum is left). All in float32, as there:
recorded outputs of the compiled filter are met to 1e-7 (relative L2 norm).

The compiled filter works on blocks of four pixels and fills up the last block with points at the
origin, whose vertices then exist as well. That is not followed: it has no effect for numbers of
pixels divisible by 4, and none on the recorded 13 x 11 image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toco.boxes import inside
from toco.filters._shared import ImageByImage, bilateral_features, position_features


@dataclass(frozen=True, slots=True)
class _Lattice:
    """The lattice of one image, as index tables for weighted sums of rows.

    Attributes:
        corners: Vertex of every corner of every pixel's simplex.
        weights: Barycentric weight of those corners.
        splat_pixels: Pixels that touch a vertex, vertex after vertex.
        splat_weights: Their weights.
        splat_offsets: Where the pixels of each vertex begin in ``splat_pixels``.
        neighbours: For each direction and vertex: the vertex itself and its two neighbours. The
            number of vertices stands for a neighbour that does not exist.
    """

    corners: Int[Tensor, "pixels corners"]
    weights: Float[Tensor, "pixels corners"]
    splat_pixels: Int[Tensor, " entries"]
    splat_weights: Float[Tensor, " entries"]
    splat_offsets: Int[Tensor, " vertices"]
    neighbours: Int[Tensor, "corners vertices 3"]

    def __call__(self, values: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
        by_pixel = values.float().flatten(1).T.contiguous()
        by_vertex = _weighted_sum(
            self.splat_pixels, by_pixel, self.splat_weights, self.splat_offsets
        )
        blur = by_vertex.new_tensor([1.0, 0.5, 0.5]).repeat(len(by_vertex), 1)
        for neighbours in self.neighbours:
            # One more row of zeros: the value of every neighbour that does not exist.
            by_vertex = _weighted_sum(neighbours, F.pad(by_vertex, (0, 0, 0, 1)), blur)
        gain = 1 / (1 + 2.0 ** -(self.corners.shape[1] - 1))
        return _weighted_sum(self.corners, by_vertex, self.weights * gain).T.reshape(values.shape)


def _weighted_sum(
    rows: Int[Tensor, "*entries"],
    table: Float[Tensor, "rows k"],
    weights: Float[Tensor, "*entries"],
    offsets: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "n k"]:
    """Sums of weighted rows of a table: one for each row of ``rows``, or for each run that begins at an offset.

    An embedding bag is the fused kernel for it: it copies no row, is parallel over the results and
    sums each of them in a fixed order.
    """
    return F.embedding_bag(rows, table, offsets, per_sample_weights=weights, mode="sum")


@torch.no_grad()
def build(
    images: Float[Tensor, "b 3 h w"],
    sigma_rgb: float,
    sigma_xy: float,
    boxes: Int[Tensor, "b 4"] | None = None,
) -> ImageByImage:
    """Build the lattice of each image; it serves any number of maps.

    Pixels outside of their box are in the lattice all the same, as in the compiled filter.

    Raises:
        ValueError: The standard deviations are so small that the lattice has more cells than 63
            bits can count.
    """
    height, width = images.shape[2:]
    return ImageByImage(
        images=tuple(
            _lattice(bilateral_features(image.float(), sigma_rgb, sigma_xy)) for image in images
        ),
        inside=None if boxes is None else inside(boxes, height, width),
        size=(height, width),
    )


@torch.no_grad()
def build_gaussian(images: Float[Tensor, "b 3 h w"], sigma_xy: float) -> ImageByImage:
    """Build the lattice of the positions, which all images have in common.

    Raises:
        ValueError: The standard deviation is so small that the lattice has more cells than 63 bits
            can count.
    """
    height, width = images.shape[2:]
    lattice = _lattice(position_features(images.float(), sigma_xy))
    return ImageByImage(images=(lattice,) * len(images), inside=None, size=(height, width))


def _lattice(features: Float[Tensor, "d pixels"]) -> _Lattice:
    nearest, rank, weights = _simplices(features)
    packed, steps = _pack(nearest, rank)
    num_corners, num_pixels = weights.shape

    # One sort gives the vertices, the corner -> vertex table and, for the splat, the pixels of each
    # vertex.
    in_order, order = packed.flatten().sort(stable=True)
    is_first = torch.ones_like(in_order, dtype=torch.bool)
    torch.ne(in_order[1:], in_order[:-1], out=is_first[1:])
    vertex = torch.empty_like(order).scatter_(0, order, is_first.cumsum(0) - 1)
    return _Lattice(
        corners=vertex.view(num_corners, num_pixels).T.contiguous(),
        weights=weights.T.contiguous(),
        splat_pixels=order % num_pixels,
        splat_weights=weights.flatten()[order],
        splat_offsets=is_first.nonzero()[:, 0],
        neighbours=_neighbours(in_order[is_first], steps),
    )


def _simplices(
    features: Float[Tensor, "d pixels"],
) -> tuple[
    Float[Tensor, "corners pixels"], Int[Tensor, "corners pixels"], Float[Tensor, "corners pixels"]
]:
    """The simplex around every point, and the weights of its d + 1 vertices.

    Coordinates, of which there are d + 1 with the sum zero, come first, their ranks next. Vertex 0
    is at the coordinates, vertex c at c more in each of them, less d + 1 in those of the c highest
    ranks.

    The order of the operations is that of the compiled filter, because a point on the face of a
    simplex goes to one side or the other by its rounding.
    """
    num_dimensions = len(features)
    num_corners = num_dimensions + 1
    # Onto the plane in d + 1 dimensions whose coordinates sum to 0. The factor makes the standard
    # deviation of splat, blur and slice together equal to 1 in every direction. It is rounded to
    # float32 where the compiled filter does.
    spread = torch.tensor(math.sqrt(2 / 3) * num_corners, dtype=torch.float32).item()
    elevated = torch.empty(num_corners, features.shape[1], device=features.device)
    partial_sum = torch.zeros_like(features[0])
    for axis in range(num_dimensions, 0, -1):
        scaled = features[axis - 1] * (spread / math.sqrt(axis * (axis + 1)))
        elevated[axis] = partial_sum - axis * scaled
        partial_sum = partial_sum + scaled
    elevated[0] = partial_sum

    # The nearest point whose coordinates are multiples of d + 1 (halves to even, as the processor
    # rounds); their sum is brought back to 0 by moving the coordinates that were rounded furthest,
    # which the rank finds.
    rounded = torch.round(elevated * (1 / num_corners))
    nearest = rounded * num_corners
    offset = elevated - nearest
    rank = (
        rounded.sum(0)
        + torch.arange(num_corners, dtype=offset.dtype, device=offset.device)[:, None]
    )
    for axis in range(num_corners):
        for other in range(axis + 1, num_corners):
            smaller = (offset[axis] < offset[other]).float()
            rank[axis] += smaller
            rank[other] -= smaller
    wrap = num_corners * ((rank < 0).float() - (rank > num_dimensions).float())
    rank = (rank + wrap).long()
    nearest = nearest + wrap

    # Weights are differences of neighbours in the sorted offsets.
    offset = (elevated - nearest) * (1 / num_corners)
    descending = torch.empty_like(offset).scatter_(0, rank, offset)
    weights = torch.empty_like(offset)
    weights[0] = descending[-1] + (1 - descending[0])
    weights[1:] = (descending[:-1] - descending[1:]).flip(0)
    return nearest, rank, weights


def _pack(
    nearest: Float[Tensor, "corners pixels"], rank: Int[Tensor, "corners pixels"]
) -> tuple[Int[Tensor, "corners pixels"], Int[Tensor, " corners"]]:
    """The vertices of each simplex as one integer each, and what a step in each lattice direction adds to it.

    All coordinates but the last, which is implied, make the integer. A step adds d to one of them
    and takes 1 from the others. The extent of every coordinate has room for a step both ways, so
    that it cannot carry over into the next.
    """
    num_corners = len(nearest)
    num_dimensions = num_corners - 1
    # A coordinate of rank r goes, over the vertices, from its r less to d - r more.
    lowest, highest = (nearest - rank)[:num_dimensions].long().aminmax(dim=1)
    lowest, highest = lowest - num_dimensions, highest + 2 * num_dimensions
    extents = (highest - lowest + 1).tolist()
    if math.prod(extents) >= 2**63:
        raise ValueError(
            f"the lattice has {extents} cells, too many to number: use larger standard deviations"
        )
    strides = torch.tensor(
        [*(math.prod(extents[axis + 1 :]) for axis in range(num_dimensions)), 0],
        device=nearest.device,
    )
    first = (
        (nearest[:num_dimensions].long() - lowest[:, None]) * strides[:num_dimensions, None]
    ).sum(0)
    # From each vertex to the next one coordinate falls by d + 1, the one of the highest rank first,
    # and all rise by 1.
    by_rank = torch.zeros_like(rank).scatter_(0, rank, strides[:, None].expand_as(rank))
    steps = num_corners * strides - strides.sum()
    falls = strides.sum() - num_corners * by_rank[1:].flip(0)
    return torch.cat([first[None], first + falls.cumsum(0)]), steps


def _neighbours(
    vertices: Int[Tensor, " vertices"], steps: Int[Tensor, " corners"]
) -> Int[Tensor, "corners vertices 3"]:
    """Index of every vertex and of its two neighbours in each direction; ``len(vertices)`` where there is none."""
    missing, num_corners = len(vertices), len(steps)
    here = torch.arange(missing, device=vertices.device).expand(num_corners, missing)
    wanted = vertices + steps[:, None]
    found = torch.searchsorted(vertices, wanted).clamp_(max=missing - 1)
    exists = vertices[found] == wanted
    after = torch.where(exists, found, missing)
    # Whoever is after me has me before it. The extra column takes the writes of those with nobody
    # after them.
    before = here.new_full((num_corners, missing + 1), missing).scatter_(1, after, here)
    return torch.stack([here, before[:, :missing], after], dim=-1)
