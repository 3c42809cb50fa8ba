"""Over-smoothing: the similarity of an image's patch tokens."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def patch_similarity(tokens: Float[Tensor, "b n c"]) -> Float[Tensor, " b"]:
    """Mean cosine similarity over all pairs of different patches of an image, in [-1, 1].

    The paper's figure 2 plots this per block and does not say whether a patch is paired with
    itself. Here it is not. The diagonal would add (1 - s) / n: negligible for 784 patches, but
    noticeable for a small image with 16. The sign is kept (the PTC loss takes the absolute value).

    The sum over all pairs is the squared length of the sum of the unit vectors, so this costs O(n
    c), not O(n^2 c).

    >>> import torch
    >>> tokens = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]])
    >>> patch_similarity(tokens).tolist()  # cosines 0, 1, 0
    [0.3333333432674408]

    Raises:
        ValueError: There is only one patch.

    Source: ToCo, figure 2.
    """
    num_patches = tokens.shape[1]
    if num_patches < 2:
        raise ValueError(
            f"Similarity needs at least two patches an image; got {num_patches}. Use a larger "
            "image."
        )
    unit = normalize(tokens.float(), dim=-1)
    pairs = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    return pairs / (num_patches * (num_patches - 1))
