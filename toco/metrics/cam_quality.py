"""How good CAMs are as labels, at every threshold of a curve in one pass over the split.

Where a pixel is foreground its class is the arg max of the CAMs whatever the threshold is, so a histogram of the
maximum per (ground truth, arg max) holds the confusion matrices of all thresholds, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from toco.metrics.segmentation import valid_pixels


class CamQuality:
    """Confusion matrices of the labels that CAMs give at several background thresholds.

    The label of a pixel is the class with the highest CAM among the classes of the image, and background where that
    CAM is at most the threshold (the evaluation form of ``cam_to_label``, compared in float32 as there).

    Attributes:
        thresholds: Ascending, float32.
        histogram: Pixels by ground truth class, arg max class, and number of thresholds below the score.
    """

    def __init__(
        self, num_foreground_classes: int, thresholds: Sequence[float], device: torch.device | str = "cpu"
    ) -> None:
        """Start from zero counts.

        Raises:
            ValueError: The thresholds do not ascend strictly, or there is none.
        """
        self.num_foreground_classes = num_foreground_classes
        self.thresholds: Float[Tensor, " t"] = torch.tensor(list(thresholds), dtype=torch.float32, device=device)
        if len(self.thresholds) == 0 or bool((self.thresholds.diff() <= 0).any()):
            raise ValueError(f"The thresholds have to ascend strictly, and be distinct in float32; got {thresholds}.")
        self.histogram: Integer[Tensor, "s k bins"] = torch.zeros(
            num_foreground_classes + 1,
            num_foreground_classes,
            len(self.thresholds) + 1,
            dtype=torch.int64,
            device=device,
        )

    def update(
        self, label: Integer[Tensor, "b h w"], cam: Float[Tensor, "b k h w"], class_labels: Float[Tensor, "b k"]
    ) -> None:
        """Add images. ``class_labels`` says which classes of the CAM take part (the ground truth at validation).

        Raises:
            ValueError: A label is neither a class nor 255.
        """
        counted = valid_pixels(label, self.num_foreground_classes + 1, "ground truth")
        score, best = (cam.float() * class_labels[:, :, None, None].float()).max(dim=1)
        # right=False: a score equal to a threshold stays on its lower side, which is the background's.
        bins = torch.bucketize(score[counted], self.thresholds)
        _, num_best, num_bins = self.histogram.shape
        cells = (label[counted].long() * num_best + best[counted]) * num_bins + bins
        self.histogram += torch.bincount(cells, minlength=self.histogram.numel()).reshape(self.histogram.shape)

    def confusion_matrices(self) -> Integer[Tensor, "t s s"]:
        """One confusion matrix (rows: ground truth) for every threshold."""
        above = self.histogram.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        background = self.histogram.sum((1, 2))[:, None] - above.sum(1)
        return torch.cat([background[:, None], above], dim=1).permute(2, 0, 1)

    def at(self, thresholds: Sequence[float]) -> CamQuality:
        """The same pixels at fewer thresholds: exactly what an evaluation with these alone would have counted.

        Raises:
            ValueError: One of them is not among those that were counted at.
        """
        fewer = CamQuality(self.num_foreground_classes, thresholds, self.histogram.device)
        if not bool(torch.isin(fewer.thresholds, self.thresholds).all()):
            raise ValueError(f"Counted at {self.thresholds.tolist()}; expected some of these, got {list(thresholds)}.")
        # The bin of a score is the number of thresholds below it.
        bins = torch.searchsorted(fewer.thresholds, self.thresholds, right=True)
        bins = torch.cat([bins.new_zeros(1), bins])
        fewer.histogram.index_add_(-1, bins, self.histogram)
        return fewer
