"""The bilateral filter on the permutohedral lattice: the approximation that the official ToCo is trained with.

Pixels are points in five dimensions (position and colour). The lattice divides that space into simplices; each point
spreads its value over the six vertices of its simplex (splat), neighbouring vertices are averaged along the six lattice
directions in turn (blur), and each point reads its vertices back with the same weights (slice).

Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010,
with the constants of Kraehenbuehl's implementation that the official code compiles: vertices that no pixel touches do
not exist, so what is blurred onto them is lost (together with the constants 0.4 to 0.6 of the Gaussian sum is left).
All in float32, as there: recorded outputs of the compiled filter are met to 1e-7 (relative L2 norm).

The compiled filter works on blocks of four pixels and fills up the last block with points at the origin, whose
vertices then exist as well. That is not followed: it has no effect for numbers of pixels divisible by 4, and none on
the recorded 13 x 11 image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toco.filters._features import bilateral_features

_DIMENSIONS = 5
_CORNERS = _DIMENSIONS + 1
_SLICE_GAIN = 1 / (1 + 2**-_DIMENSIONS)


@dataclass(frozen=True, slots=True)
class LatticeFilter:
    """The lattice of one image, as index tables for weighted sums of rows.

    Attributes:
        corners: Vertex of every corner of every pixel's simplex.
        weights: Barycentric weight of those corners.
        splat_pixels: Pixels that touch a vertex, vertex after vertex.
        splat_weights: Their weights.
        splat_offsets: Where the pixels of each vertex begin in ``splat_pixels``.
        neighbours: For each direction and vertex: the vertex itself and its two neighbours. The number of vertices
            stands for a neighbour that does not exist.
        height: Rows of the image.
        width: Columns of the image.
    """

    corners: Int[Tensor, "pixels 6"]
    weights: Float[Tensor, "pixels 6"]
    splat_pixels: Int[Tensor, " entries"]
    splat_weights: Float[Tensor, " entries"]
    splat_offsets: Int[Tensor, " vertices"]
    neighbours: Int[Tensor, "6 vertices 3"]
    height: int
    width: int

    @torch.no_grad()
    def __call__(self, values: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
        """Filter all maps at once."""
        if values.shape[1:] != (self.height, self.width):
            raise ValueError(f"expected maps of {self.height} x {self.width} pixels, got {tuple(values.shape)}")
        by_pixel = values.float().flatten(1).T.contiguous()
        by_vertex = _weighted_sum(self.splat_pixels, by_pixel, self.splat_weights, self.splat_offsets)
        blur = by_vertex.new_tensor([1.0, 0.5, 0.5]).repeat(len(by_vertex), 1)
        for neighbours in self.neighbours:
            # One more row of zeros: the value of every neighbour that does not exist.
            by_vertex = _weighted_sum(neighbours, F.pad(by_vertex, (0, 0, 0, 1)), blur)
        sliced = _weighted_sum(self.corners, by_vertex, self.weights * _SLICE_GAIN)
        return sliced.T.reshape(values.shape).to(values.dtype)


def _weighted_sum(
    rows: Int[Tensor, "*entries"],
    table: Float[Tensor, "rows k"],
    weights: Float[Tensor, "*entries"],
    offsets: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "n k"]:
    """Sums of weighted rows of a table: one for each row of ``rows``, or for each run that begins at an offset.

    An embedding bag is the fused kernel for it: it copies no row, is parallel over the results and sums each of them in
    a fixed order.
    """
    return F.embedding_bag(rows, table, offsets, per_sample_weights=weights, mode="sum")


@torch.no_grad()
def build(image: Float[Tensor, "3 h w"], sigma_rgb: float, sigma_xy: float) -> LatticeFilter:
    """Build the lattice of one image; it serves any number of maps.

    Raises:
        ValueError: The standard deviations are so small that the lattice has more cells than 63 bits can count.
    """
    height, width = image.shape[1:]
    keys, weights = _simplices(bilateral_features(image.float(), sigma_rgb, sigma_xy))
    packed, steps = _pack(keys)
    num_pixels = weights.shape[1]

    # One sort gives the vertices, the corner -> vertex table and, for the splat, the pixels of each vertex.
    in_order, order = packed.flatten().sort(stable=True)
    is_first = torch.ones_like(in_order, dtype=torch.bool)
    torch.ne(in_order[1:], in_order[:-1], out=is_first[1:])
    vertex = torch.empty_like(order)
    vertex[order] = is_first.cumsum(0) - 1
    return LatticeFilter(
        corners=vertex.view(_CORNERS, num_pixels).T.contiguous(),
        weights=weights.T.contiguous(),
        splat_pixels=torch.arange(num_pixels, device=image.device).repeat(_CORNERS)[order],
        splat_weights=weights.flatten()[order],
        splat_offsets=is_first.nonzero()[:, 0],
        neighbours=_neighbours(in_order[is_first], steps),
        height=height,
        width=width,
    )


def _simplices(
    features: Float[Tensor, "5 pixels"],
) -> tuple[Int[Tensor, "6 5 pixels"], Float[Tensor, "6 pixels"]]:
    """First five coordinates of the six vertices around every point (the sixth makes the sum zero), and their weights.

    The order of the operations is that of the compiled filter, because a point on the face of a simplex goes to one
    side or the other by its rounding.
    """
    # Onto the plane in six dimensions whose coordinates sum to 0. The factor makes the standard deviation of splat,
    # blur and slice together equal to 1 in every direction. It is rounded to float32 where the compiled filter does.
    spread = torch.tensor(math.sqrt(2 / 3) * _CORNERS, dtype=torch.float32).item()
    elevated = torch.empty(_CORNERS, features.shape[1], device=features.device)
    partial_sum = torch.zeros_like(features[0])
    for axis in range(_DIMENSIONS, 0, -1):
        scaled = features[axis - 1] * (spread / math.sqrt(axis * (axis + 1)))
        elevated[axis] = partial_sum - axis * scaled
        partial_sum = partial_sum + scaled
    elevated[0] = partial_sum

    # The nearest point whose coordinates are multiples of 6 (halves to even, as the processor rounds); their sum is
    # brought back to 0 by moving the coordinates that were rounded furthest, which the rank finds.
    rounded = torch.round(elevated * (1 / _CORNERS))
    nearest = rounded * _CORNERS
    offset = elevated - nearest
    rank = rounded.sum(0) + torch.arange(_CORNERS, dtype=offset.dtype, device=offset.device)[:, None]
    for axis in range(_CORNERS):
        for other in range(axis + 1, _CORNERS):
            smaller = (offset[axis] < offset[other]).float()
            rank[axis] += smaller
            rank[other] -= smaller
    wrap = _CORNERS * ((rank < 0).float() - (rank > _DIMENSIONS).float())
    rank = (rank + wrap).long()
    nearest = nearest + wrap

    # Weights are differences of neighbours in the sorted offsets.
    offset = (elevated - nearest) * (1 / _CORNERS)
    descending = torch.empty_like(offset).scatter_(0, rank, offset)
    weights = torch.empty_like(offset)
    weights[0] = descending[-1] + (1 - descending[0])
    weights[1:] = (descending[:-1] - descending[1:]).flip(0)

    # Corner c is c added to every coordinate, less 6 in those of the c highest ranks.
    corner = torch.arange(_CORNERS, device=features.device)[:, None, None]
    nearest, rank = nearest[:_DIMENSIONS].long(), rank[:_DIMENSIONS]
    keys = nearest + corner - _CORNERS * (rank > _DIMENSIONS - corner)
    return keys, weights


def _pack(keys: Int[Tensor, "6 5 pixels"]) -> tuple[Int[Tensor, "6 pixels"], Int[Tensor, " 6"]]:
    """The five coordinates of each vertex as one integer, and what a step in each lattice direction adds to it.

    A step adds 5 to one coordinate and takes 1 from the others (the sixth being implied). The extent of every
    coordinate has room for a step both ways, so that it cannot carry over into the next coordinate.
    """
    by_axis = keys.transpose(0, 1).flatten(1)
    lowest, highest = by_axis.aminmax(dim=1)
    room = _DIMENSIONS
    extents = (highest - lowest + 1 + 2 * room).tolist()
    if math.prod(extents) >= 2**63:
        raise ValueError(f"the lattice has {extents} cells, too many to number: use larger standard deviations")
    strides = torch.tensor([math.prod(extents[axis + 1 :]) for axis in range(_DIMENSIONS)], device=keys.device)
    packed = ((by_axis - lowest[:, None] + room) * strides[:, None]).sum(0).view(_CORNERS, -1)
    implied = torch.zeros(1, dtype=torch.long, device=keys.device)
    return packed, _CORNERS * torch.cat([strides, implied]) - strides.sum()


def _neighbours(vertices: Int[Tensor, " vertices"], steps: Int[Tensor, " 6"]) -> Int[Tensor, "6 vertices 3"]:
    """Index of every vertex and of its two neighbours in each direction; ``len(vertices)`` where there is none."""
    missing = len(vertices)
    here = torch.arange(missing, device=vertices.device).expand(_CORNERS, missing)
    wanted = vertices + steps[:, None]
    found = torch.searchsorted(vertices, wanted).clamp_(max=missing - 1)
    exists = vertices[found] == wanted
    after = torch.where(exists, found, missing)
    # Whoever is after me has me before it. The extra column takes the writes of those with nobody after them.
    before = torch.full((_CORNERS, missing + 1), missing, device=vertices.device).scatter_(1, after, here)
    return torch.stack([here, before[:, :missing], after], dim=-1)
