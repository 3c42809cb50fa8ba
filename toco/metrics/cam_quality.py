"""Quality of CAMs as labels, at many thresholds in one pass over the split.

The class of a foreground pixel is the arg max of the CAMs, whatever the threshold is. A histogram
of the maximum per (ground truth, arg max) therefore holds the exact confusion matrices of all
thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from toco.metrics.segmentation import count_by_image


@dataclass(frozen=True, slots=True)
class CamCounts:
    """Pixel counts of a batch by image, without void pixels.

    A slot is the index of a map of the image plus one; slot 0 stands for no map.

    Attributes:
        pixels: Pixels by ground truth, slot of the highest CAM, and number of thresholds below that
            CAM.
        classes: 0-based class of every slot. Where all CAMs are 0 the absent classes tie with the
            present ones, and class 0 wins, as it would among the maps of all classes.
    """

    pixels: Integer[Tensor, "b s slots bins"]
    classes: Integer[Tensor, "b slots"]

    def confusions(self, threshold_index: int) -> Integer[Tensor, "b s s"]:
        """Confusion matrix (rows: ground truth) of every image at one of the thresholds."""
        num_images, num_classes = self.pixels.shape[:2]
        above = self.pixels[..., threshold_index + 1 :].sum(-1)
        matrices = above.new_zeros(num_images, num_classes, num_classes)
        matrices.scatter_add_(2, (self.classes.long() + 1)[:, None].expand_as(above), above)
        matrices[..., 0] = self.pixels.sum((2, 3)) - above.sum(2)
        return matrices


class CamQuality:
    """Confusion matrices of the labels that CAMs give at several background thresholds.

    The label of a pixel is the class with the highest CAM among the classes of the image, and
    background where that CAM is at most the threshold. It equals
    :func:`toco.cam.labels.cam_to_label`, compared in float32.

    Attributes:
        thresholds: Ascending, float32.
        histogram: Pixels by ground truth class, arg max class, and number of thresholds below the
            score.
    """

    def __init__(
        self,
        num_foreground_classes: int,
        thresholds: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        """Start from zero counts.

        Raises:
            ValueError: The thresholds do not ascend strictly, or are empty.
        """
        self.num_foreground_classes = num_foreground_classes
        self.thresholds: Float[Tensor, " t"] = torch.tensor(
            list(thresholds), dtype=torch.float32, device=device
        )
        if len(self.thresholds) == 0 or bool((self.thresholds.diff() <= 0).any()):
            raise ValueError(
                "The thresholds have to ascend strictly, and be distinct in float32; got "
                f"{thresholds}."
            )
        self.histogram: Integer[Tensor, "s k bins"] = torch.zeros(
            num_foreground_classes + 1,
            num_foreground_classes,
            len(self.thresholds) + 1,
            dtype=torch.int64,
            device=device,
        )

    def count(
        self,
        label: Integer[Tensor, "b h w"],
        cam: Float[Tensor, "b m h w"],
        class_labels: Float[Tensor, "b k"],
        present: Int[Tensor, "b m"] | None = None,
    ) -> CamCounts:
        """Count the pixels of images without adding them to the histogram.

        The function does not wait for the device, so labels are not checked.

        Args:
            label: Ground truth, 255 where a pixel is ignored.
            cam: CAMs in [0, 1].
            class_labels: Classes that may win (at validation, those of the ground truth).
            present: 0-based classes of the maps, ascending, including all that may win. ``None``
                stands for all ``k``.
        """
        if present is None:
            present = torch.arange(self.num_foreground_classes, device=cam.device).expand(
                len(cam), -1
            )
        present = present.long()
        score, best = (cam.float() * class_labels.gather(1, present)[:, :, None, None].float()).max(
            dim=1
        )
        slot = torch.where(score <= 0, 0, best + 1)
        # right=False: a score equal to a threshold counts as below it, and so as background.
        bins = torch.bucketize(score, self.thresholds)
        num_slots, num_bins = cam.shape[1] + 1, len(self.thresholds) + 1
        pixels = count_by_image(
            label, slot * num_bins + bins, self.num_foreground_classes + 1, num_slots * num_bins
        )
        return CamCounts(
            pixels=pixels.unflatten(2, (num_slots, num_bins)),
            classes=torch.cat([torch.zeros_like(present[:, :1]), present], dim=1),
        )

    def add(self, counts: CamCounts) -> None:
        """Add the counts of images to the histogram."""
        self.histogram.index_add_(
            1, counts.classes.flatten(), counts.pixels.transpose(0, 1).flatten(1, 2)
        )

    def confusion_matrices(self) -> Integer[Tensor, "t s s"]:
        """One confusion matrix (rows: ground truth) for every threshold."""
        above = self.histogram.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        background = self.histogram.sum((1, 2))[:, None] - above.sum(1)
        return torch.cat([background[:, None], above], dim=1).permute(2, 0, 1)

    def at(self, thresholds: Sequence[float]) -> CamQuality:
        """Restrict the counts to fewer thresholds.

        The result is exactly that of an evaluation with these thresholds alone.

        Raises:
            ValueError: One of them is not among the counted thresholds.
        """
        restricted = CamQuality(self.num_foreground_classes, thresholds, self.histogram.device)
        if not bool(torch.isin(restricted.thresholds, self.thresholds).all()):
            raise ValueError(
                f"Counted at {self.thresholds.tolist()}; expected some of these, got "
                f"{list(thresholds)}."
            )
        # The bin of a score is the number of thresholds below it.
        bins = torch.searchsorted(restricted.thresholds, self.thresholds, right=True)
        bins = torch.cat([bins.new_zeros(1), bins])
        restricted.histogram.index_add_(-1, bins, self.histogram)
        return restricted
