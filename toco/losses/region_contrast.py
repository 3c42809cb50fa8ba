"""Contrast of regions with a memory of regions, with mixed pairs of regions.

``r`` counts regions, ``n`` the slots of a class in the memory.

Source: RCA (Zhou et al., CVPR 2022), and the official code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

_MIN_DENOMINATOR = 1e-4
"""Least denominator, as a fraction of the largest exponential; official."""
_MIN_NORM = 1e-12
_NEVER = -1e30
"""Logit of a slot that does not count. Minus infinity would give gradients that are not numbers."""


def region_contrast_loss(
    embeddings: Float[Tensor, "b m c"],
    is_region: Bool[Tensor, "b m"],
    classes: Integer[Tensor, "b m"],
    partners: Integer[Tensor, "b m"],
    own_share: Float[Tensor, "b m"],
    memory: Float[Tensor, "k n c"],
    is_filled: Bool[Tensor, "k n"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Contrast every region, mixed with its partner, with the memory: a mean over the images.

    A region's loss is the mixture of two losses, with the same shares as the embeddings. Each loss
    is the mean over the slots of one class: every slot stands alone against all slots of the other
    classes. An image's loss is the mean over its regions. An image without a region counts with 0.
    A region of a class without a filled slot does not count, nor does one that is mixed with a
    region of such a class.

    No gradient reaches the memory.

    Args:
        embeddings: Pooled embedding of every region.
        is_region: Whether the region exists.
        classes: Class (0-based) of every region.
        partners: Index of the region's partner among the ``b * m`` regions.
        own_share: Share of the region's own embedding in the mixture, in [0, 1].
        memory: Slots of every class, not normalised.
        is_filled: Slots that count.
        temperature: Tau.

    Source: RCA, and the official code, whose value is the sum over the images instead of the mean.
    """
    num_images = len(embeddings)
    own, of_partner = embeddings.flatten(0, 1), embeddings.flatten(0, 1)[partners.flatten()]
    share = own_share.flatten()[:, None].to(own.dtype)
    queries = F.normalize(share * own + (1 - share) * of_partner, dim=-1, eps=_MIN_NORM)
    own_class, partner_class = classes.flatten(), classes.flatten()[partners.flatten()]

    has_slots = is_filled.any(dim=1)
    is_mixed = share.squeeze(1) < 1
    counts = is_region.flatten() & has_slots[own_class] & (has_slots[partner_class] | ~is_mixed)
    by_class = _contrast(queries, memory, is_filled, temperature)
    share = share.squeeze(1)
    losses = share * by_class.gather(1, own_class[:, None])[:, 0]
    losses = losses + (1 - share) * by_class.gather(1, partner_class[:, None])[:, 0]
    losses = torch.where(counts, losses, 0.0).unflatten(0, (num_images, -1))
    num_regions = counts.unflatten(0, (num_images, -1)).sum(dim=1)
    of_image: Tensor = losses.sum(dim=1) / num_regions.clamp(min=1)
    return of_image.mean()


def _contrast(
    queries: Float[Tensor, "r c"],
    memory: Float[Tensor, "k n c"],
    is_filled: Bool[Tensor, "k n"],
    temperature: float,
) -> Float[Tensor, "r k"]:
    """Contrast unit vectors with each class: the mean over the slots of the class."""
    num_classes, num_slots = is_filled.shape
    slots = F.normalize(memory.detach().to(queries.dtype), dim=-1, eps=_MIN_NORM)
    logits = queries @ slots.flatten(0, 1).T / temperature
    logits = logits.masked_fill(~is_filled.flatten(), _NEVER).unflatten(1, (num_classes, num_slots))
    largest = logits.detach().amax(dim=(1, 2))[:, None, None]
    of_class = logits.logsumexp(dim=2)
    # Log-sum over the slots of all other classes, for each class.
    others = ~torch.eye(num_classes, dtype=torch.bool, device=queries.device)
    of_others = of_class[:, None, :].masked_fill(~others, _NEVER).logsumexp(dim=2)
    denominators = torch.logaddexp(of_others[:, :, None], logits)
    denominators = torch.maximum(denominators, largest + math.log(_MIN_DENOMINATOR))
    terms = torch.where(is_filled, denominators - logits, 0.0)
    return terms.sum(dim=2) / is_filled.sum(dim=1).clamp(min=1)


def choose_partners(
    is_region: Bool[Tensor, "b m"],
    classes: Integer[Tensor, "b m"],
    image_draws: Float[Tensor, "b m"],
    class_draws: Float[Tensor, "b m"],
    others_only: bool,
) -> tuple[Integer[Tensor, "b m"], Bool[Tensor, "b m"]]:
    """Choose the region that each region is mixed with: an image, then one of its regions.

    Both choices are uniform.

    Args:
        is_region: Whether the region exists; no other can be a partner.
        classes: Class (0-based) of every region.
        image_draws: Uniform number in [0, 1) that chooses the image.
        class_draws: Uniform number in [0, 1) that chooses the region.
        others_only: Allow partners of another image and of another class alone. Otherwise every
            region may be the partner, the region itself included, as in the official code.

    Returns:
        Index of the partner among the ``b * m`` regions, and whether there is one. Without one the
        index is the region's own.
    """
    num_images, num_regions = is_region.shape
    allowed = is_region.expand(num_images * num_regions, -1, -1)
    if others_only:
        image = torch.arange(num_images, device=classes.device)
        of_other_image = image.repeat_interleave(num_regions)[:, None] != image
        of_other_class = classes.flatten()[:, None, None] != classes
        allowed = allowed & of_other_image[..., None] & of_other_class
    has_allowed = allowed.any(dim=2)
    chosen_image = _choose(has_allowed, image_draws.flatten())
    of_image = allowed.gather(1, chosen_image[:, None, None].expand(-1, -1, num_regions))[:, 0]
    index = chosen_image * num_regions + _choose(of_image, class_draws.flatten())
    has_partner = has_allowed.any(dim=1)
    own = torch.arange(num_images * num_regions, device=classes.device)
    index = torch.where(has_partner, index, own)
    return index.view_as(classes), has_partner.view_as(classes)


def _choose(allowed: Bool[Tensor, "r o"], draws: Float[Tensor, " r"]) -> Integer[Tensor, " r"]:
    """Choose one of the allowed options in each row; 0 where there is none."""
    number = allowed.sum(dim=1)
    rank = torch.minimum((draws * number).long(), number - 1)
    is_chosen = allowed & (allowed.cumsum(dim=1) == rank[:, None] + 1)
    return is_chosen.to(torch.uint8).argmax(dim=1)
