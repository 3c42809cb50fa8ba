"""Gaussian filters on the permutohedral lattice, the approximation that official ToCo uses.

Pixels are points in d dimensions: five (position and colour) for the bilateral filter, two for the
Gaussian of position alone. The lattice divides that space into simplices. Each point distributes
its value over the d + 1 vertices of its simplex (splat). Neighbouring vertices are averaged along
the d + 1 lattice directions in turn (blur). Each point then sums its vertices with the same weights
(slice).

The constants are those of Kraehenbuehl's implementation, which the official code compiles. Vertices
that no pixel touches do not exist, so values blurred onto them are lost. Together with the
constants, the result is 0.4 to 0.6 of the Gaussian sum. All steps are in float32, as there:
recorded outputs of the compiled filter are reproduced to 1e-7 (relative L2 norm).

The compiled filter works on blocks of four pixels and pads the last block with points at the
origin, whose vertices then exist as well. This module does not do that: it has no effect for
numbers of pixels divisible by 4, and none on the recorded 13 x 11 image.

Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010.
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
        corners: Vertex at each corner of every pixel's simplex.
        weights: Barycentric weight of those corners.
        splat_pixels: Pixels that touch a vertex, vertex after vertex.
        splat_weights: Weights of those pixels.
        splat_offsets: Position in ``splat_pixels`` at which the pixels of each vertex begin.
        neighbours: For each direction and vertex, the vertex itself and its two neighbours. A
            missing neighbour has the number of vertices as its index.
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
            # The padding is one row of zeros, the value of every missing neighbour.
            by_vertex = _weighted_sum(neighbours, F.pad(by_vertex, (0, 0, 0, 1)), blur)
        # The constant alpha of the slicing step in Kraehenbuehl's implementation.
        gain = 1 / (1 + 2.0 ** -(self.corners.shape[1] - 1))
        return _weighted_sum(self.corners, by_vertex, self.weights * gain).T.reshape(values.shape)


def _weighted_sum(
    rows: Int[Tensor, "*entries"],
    table: Float[Tensor, "rows k"],
    weights: Float[Tensor, "*entries"],
    offsets: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "n k"]:
    """Sums of weighted rows of a table, one for each row of ``rows``.

    With ``offsets``, ``rows`` is flat, and each run that begins at an offset gives a sum. An
    embedding bag is the fused kernel for this: it copies no row, is parallel over the results and
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

    As in the compiled filter, pixels outside their box are part of the lattice.

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
    """Build the lattice of the positions, which all images share.

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

    # One sort gives the vertices, the table from corners to vertices and, for the splat, the pixels
    # of each vertex.
    ascending, order = packed.flatten().sort(stable=True)
    is_first = torch.ones_like(ascending, dtype=torch.bool)
    torch.ne(ascending[1:], ascending[:-1], out=is_first[1:])
    vertex = torch.empty_like(order).scatter_(0, order, is_first.cumsum(0) - 1)
    return _Lattice(
        corners=vertex.view(num_corners, num_pixels).T.contiguous(),
        weights=weights.T.contiguous(),
        splat_pixels=order % num_pixels,
        splat_weights=weights.flatten()[order],
        splat_offsets=is_first.nonzero()[:, 0],
        neighbours=_neighbours(ascending[is_first], steps),
    )


def _simplices(
    features: Float[Tensor, "d pixels"],
) -> tuple[
    Float[Tensor, "corners pixels"], Int[Tensor, "corners pixels"], Float[Tensor, "corners pixels"]
]:
    """Find the simplex around every point, and the weights of its d + 1 vertices.

    Returns the d + 1 coordinates of the nearest lattice point (their sum is zero), the ranks of the
    coordinates, and the weights. Vertex 0 is at these coordinates. Vertex c has c more in each
    coordinate, and d + 1 less in the coordinates with the c highest ranks.

    The order of the operations is that of the compiled filter, because rounding decides to which
    side a point on the face of a simplex belongs.
    """
    num_dimensions = len(features)
    num_corners = num_dimensions + 1
    # Project onto the plane in d + 1 dimensions whose coordinates sum to 0. The factor makes the
    # standard deviation of splat, blur and slice together 1 in every direction. It is rounded to
    # float32 where the compiled filter rounds it.
    spread = torch.tensor(math.sqrt(2 / 3) * num_corners, dtype=torch.float32).item()
    elevated = torch.empty(num_corners, features.shape[1], device=features.device)
    partial_sum = torch.zeros_like(features[0])
    for axis in range(num_dimensions, 0, -1):
        scaled = features[axis - 1] * (spread / math.sqrt(axis * (axis + 1)))
        elevated[axis] = partial_sum - axis * scaled
        partial_sum = partial_sum + scaled
    elevated[0] = partial_sum

    # Find the nearest point whose coordinates are multiples of d + 1 (halves round to even, as in
    # the processor). The coordinates that were rounded furthest, found by rank, are moved until the
    # sum is 0 again.
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

    # The weights are differences between neighbours in the sorted offsets.
    offset = (elevated - nearest) * (1 / num_corners)
    descending = torch.empty_like(offset).scatter_(0, rank, offset)
    weights = torch.empty_like(offset)
    weights[0] = descending[-1] + (1 - descending[0])
    weights[1:] = (descending[:-1] - descending[1:]).flip(0)
    return nearest, rank, weights


def _pack(
    nearest: Float[Tensor, "corners pixels"], rank: Int[Tensor, "corners pixels"]
) -> tuple[Int[Tensor, "corners pixels"], Int[Tensor, " corners"]]:
    """Number the vertices of each simplex, and give the step of each lattice direction.

    The integer of a vertex is made from all coordinates but the last, which is implied. A step in a
    direction adds d to one coordinate and subtracts 1 from the others. The extent of every
    coordinate leaves room for a step both ways, so that no coordinate carries over into the next.
    """
    num_corners = len(nearest)
    num_dimensions = num_corners - 1
    # Over the vertices, a coordinate of rank r varies from r below its value to d - r above it.
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
    # From one vertex to the next, all coordinates rise by 1, and one falls by d + 1: the highest
    # rank first.
    by_rank = torch.zeros_like(rank).scatter_(0, rank, strides[:, None].expand_as(rank))
    steps = num_corners * strides - strides.sum()
    falls = strides.sum() - num_corners * by_rank[1:].flip(0)
    return torch.cat([first[None], first + falls.cumsum(0)]), steps


def _neighbours(
    vertices: Int[Tensor, " vertices"], steps: Int[Tensor, " corners"]
) -> Int[Tensor, "corners vertices 3"]:
    """Indices of every vertex and of its two neighbours in each direction.

    ``len(vertices)`` stands for a missing neighbour.
    """
    num_vertices, num_corners = len(vertices), len(steps)
    vertex = torch.arange(num_vertices, device=vertices.device).expand(num_corners, num_vertices)
    successors = vertices + steps[:, None]
    candidates = torch.searchsorted(vertices, successors).clamp_(max=num_vertices - 1)
    exists = vertices[candidates] == successors
    after = torch.where(exists, candidates, num_vertices)
    # Invert the table: after[i] == j gives before[j] == i. The extra column collects the writes of
    # vertices without a successor.
    before = vertex.new_full((num_corners, num_vertices + 1), num_vertices).scatter_(
        1, after, vertex
    )
    return torch.stack([vertex, before[:, :num_vertices], after], dim=-1)
