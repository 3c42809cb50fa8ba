"""Online attention accumulation (OAA): pseudo labels from the maps of a training.

These functions are for comparisons with the official code of RCA. No command and no training calls
them.

OAA stores a map for every image and class and takes the maximum over the epochs. RCA makes its
pseudo labels from these maps and from saliency. The official path is::

    stored = StoredAttention.empty(...)
    stored = accumulate_attention(stored, ...)  # in every epoch but the first
    own_maps = stored.maps[i, classes][None]  # the classes that image i contains
    attention = resize_attention(own_maps, size)
    probabilities = refine_attention(image, attention, config)
    label = attention_to_pseudo_label(probabilities, classes[None], saliency, config)

Source: Jiang et al., "Integral Object Mining via Online Attention Accumulation", ICCV 2019; Zhou et
al., "Regional Semantic Contrast and Aggregation for Weakly Supervised Semantic Segmentation" (RCA),
CVPR 2022. The details are those of the official code of RCA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from toco.cam.activation import normalise_cam
from toco.cam.config import AttentionLabelConfig
from toco.cam.crf import dense_crf
from toco.cam.labels import class_ids
from toco.types import IGNORE_INDEX

# Official; keeps the division by the largest value of a map finite.
_EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class StoredAttention:
    """The accumulated maps of some images.

    Attributes:
        maps: Attention, levels of 255; 0 where there is no map yet.
        has_map: Whether a map is stored for the image and class. A stored map may be 0 everywhere.
    """

    maps: UInt8[Tensor, "b k p q"]
    has_map: Bool[Tensor, "b k"]

    @classmethod
    def empty(
        cls, num_images: int, num_classes: int, size: tuple[int, int], device: torch.device | str
    ) -> StoredAttention:
        """Begin without any map.

        Args:
            num_images: ``b``.
            num_classes: ``k``, without background.
            size: Rows ``p`` and columns ``q`` of a map.
            device: Where the maps are.
        """
        return cls(
            maps=torch.zeros(num_images, num_classes, *size, dtype=torch.uint8, device=device),
            has_map=torch.zeros(num_images, num_classes, dtype=torch.bool, device=device),
        )


@torch.no_grad()
def accumulate_attention(
    stored: StoredAttention,
    maps: Float[Tensor, "b k p q"],
    class_labels: Float[Tensor, "b k"],
    scores: Float[Tensor, "b k"],
    is_last: bool,
    min_score: float = 0.1,
) -> StoredAttention:
    """Merge the maps of an epoch into the stored ones by their maximum.

    A map is first scaled so that its own largest value is 255, and rounded. A weak map of an early
    epoch therefore counts like a strong late one. A map without a positive value is 0 everywhere.

    A map is merged if the image contains the class and the class scores at least ``min_score``. In
    the last epoch a class of the image without a stored map gets its map whatever it scores.

    The official code skips the first epoch; here the caller does that. A pixel of a map must show
    the same part of the image in every epoch: no crops and no flips.

    Args:
        stored: Maps of the same images up to now.
        maps: Activations of this epoch, before the ReLU.
        class_labels: Which classes the image contains.
        scores: Sigmoid of the class logits.
        is_last: Whether this is the last epoch.
        min_score: Lowest score of a class whose map is merged, in [0, 1].

    Returns:
        New maps; ``stored`` is unchanged.

    Raises:
        ValueError: The maps have another shape than the stored ones.

    Source: official RCA, the accumulation in its training step.

    >>> stored = StoredAttention.empty(1, 1, (1, 3), "cpu")
    >>> present = torch.ones(1, 1)
    >>> for maps in ([-1.0, 1.0, 2.0], [4.0, 0.0, 2.0]):
    ...     maps = torch.tensor(maps).view(1, 1, 1, 3)
    ...     stored = accumulate_attention(stored, maps, present, present, is_last=False)
    >>> stored.maps.tolist()
    [[[[255, 128, 255]]]]
    """
    if maps.shape != stored.maps.shape:
        raise ValueError(
            f"expected maps of the same images, classes and size as the stored ones, "
            f"{tuple(stored.maps.shape)}, got {tuple(maps.shape)}; accumulation needs the same "
            "geometry in every epoch"
        )
    positive = maps.relu()
    largest = positive.amax(dim=(2, 3), keepdim=True)
    levels = (255 * positive / (largest + _EPSILON)).round().to(torch.uint8)

    is_merged = scores >= min_score
    if is_last:
        is_merged = is_merged | ~stored.has_map
    is_merged = is_merged & (class_labels != 0)
    merged = torch.maximum(stored.maps, levels)
    return StoredAttention(
        maps=torch.where(is_merged[:, :, None, None], merged, stored.maps),
        has_map=stored.has_map | is_merged,
    )


def resize_attention(
    maps: UInt8[Tensor, "b m p q"], size: tuple[int, int]
) -> UInt8[Tensor, "b m h w"]:
    """Resize maps of 8 bits to an image: bilinear, half-pixel centres, no antialias, rounded.

    The official code leaves that to OpenCV, whose arithmetic in whole numbers gives values up to
    one level away.

    Args:
        maps: Attention, levels of 255.
        size: Rows and columns of the image.
    """
    resized = interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)
    return resized.round().to(torch.uint8)


def attention_scores(
    attention: UInt8[Tensor, "b m h w"], background_power: float
) -> Float[Tensor, "b m+1 h w"]:
    """Normalise maps to [0, 1], and score the background by what they leave.

    Every map of every image is min-max normalised. The scores of a pixel need not sum to 1.

    Args:
        attention: Maps of an image's own classes, levels of 255.
        background_power: The background, first, scores ``(1 - a) ** background_power`` with the
            highest attention ``a`` of the pixel.

    Raises:
        ValueError: There is no map.

    Source: official RCA, the script that makes the pseudo labels.
    """
    if attention.shape[1] == 0:
        raise ValueError(
            "expected the map of at least one class for each image, got none; leave out images "
            "without a class"
        )
    normalised = normalise_cam(attention.float(), _EPSILON)
    background = (1 - normalised.amax(dim=1, keepdim=True)) ** background_power
    return torch.cat([background, normalised], dim=1)


def refine_attention(
    images: Float[Tensor, "b 3 h w"],
    attention: UInt8[Tensor, "b m h w"],
    config: AttentionLabelConfig,
) -> Float[Tensor, "b m+1 h w"]:
    """Refine the scores of :func:`attention_scores` by the dense CRF.

    The official script reads images with OpenCV, so that its CRF sees blue, green, red. The lattice
    depends on that order: with red, green, blue up to 2.2 % of the pixels of a recorded label
    differ. This function reverses the channels.

    Args:
        images: Levels 0 to 255, in the order R, G, B.
        attention: Maps of an image's own classes at the image's size, levels of 255. A map of an
            absent class would change the result; images with different numbers of classes go into
            separate calls.
        config: Background score and CRF.

    Returns:
        Probabilities of the background, first, and of the classes.

    Raises:
        ValueError: There is no map, or the maps are not of the images' number and size.

    Source: official RCA, the script that makes the pseudo labels.
    """
    scores = attention_scores(attention, config.background_power)
    return dense_crf(images.flip(1), scores, config.crf)


def attention_to_pseudo_label(
    probabilities: Float[Tensor, "b scores h w"],
    present: Integer[Tensor, "b m"],
    saliency: UInt8[Tensor, "b _ _"] | None,
    config: AttentionLabelConfig,
) -> Integer[Tensor, "b h w"]:
    """Label every pixel with a class, with 0 or, where it is uncertain, with 255.

    A class scores its probability, and the background ``1 - saliency / 255``. The highest score
    wins, and the background wins a tie. Four rules then set the label to 255:

    - Two or more scores exceed ``conflict_score``.
    - The label is 0, but the saliency is at least ``salient_level``.
    - The label is 0, but the probability of a class exceeds ``overruled_score``.
    - The label of less than ``min_foreground`` of the pixels is a class. Pixels that are 255 by the
      rules above are no foreground. The whole image becomes 255.

    Without saliency the background scores its own probability, and the rule on saliency falls away.
    This form is ours; the official script needs saliency and discards that probability. Its scores
    sum to 1. Two of them cannot exceed a threshold of 0.5 or more, so with the default thresholds
    only the last rule still acts.

    Args:
        probabilities: Result of :func:`refine_attention`: the background, then ``m`` classes.
        present: 0-based class of every map; the label is this number plus one.
        saliency: Saliency of every pixel ``h w``, levels of 255, or ``None``.
        config: Thresholds.

    Raises:
        ValueError: The number of classes or the size of the saliency does not fit the
            probabilities.

    Source: official RCA, the script that makes the pseudo labels.
    """
    num_images, num_scores, height, width = probabilities.shape
    if present.shape != (num_images, num_scores - 1):
        raise ValueError(
            f"expected {num_scores - 1} classes for each of {num_images} images, because the "
            f"probabilities begin with the background, got {tuple(present.shape)}"
        )
    of_classes = probabilities[:, 1:]
    if saliency is None:
        background = probabilities[:, :1]
    elif saliency.shape == (num_images, height, width):
        background = 1 - saliency[:, None].to(probabilities.dtype) / 255
    else:
        raise ValueError(
            f"expected the saliency of {num_images} images of {height} x {width} pixels, got "
            f"{tuple(saliency.shape)}; resize it"
        )
    scores = torch.cat([background, of_classes], dim=1)
    number = scores.argmax(dim=1)  # the first of equals, so the background wins a tie

    # The rules, in the official order: the last one counts what the others leave.
    is_doubtful_background = (of_classes > config.overruled_score).any(dim=1)
    if saliency is not None:
        is_doubtful_background = is_doubtful_background | (saliency >= config.salient_level)
    is_uncertain = (scores > config.conflict_score).sum(dim=1) >= 2
    is_uncertain = is_uncertain | ((number == 0) & is_doubtful_background)
    foreground_pixels = ((number > 0) & ~is_uncertain).sum(dim=(1, 2), keepdim=True)
    is_uncertain = is_uncertain | (foreground_pixels < config.min_foreground * height * width)
    return class_ids(number, present).masked_fill(is_uncertain, IGNORE_INDEX)
