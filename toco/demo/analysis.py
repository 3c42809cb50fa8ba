"""Run a trained method on an image, and keep the results in memory.

Other thresholds and patches are then shown without another pass through the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from toco.cam.labels import class_ids
from toco.cam.par import refine_pseudo_label
from toco.data.views.normalise import denormalise_255
from toco.evaluate.sizes import network_input, resize_bilinear
from toco.metrics.smoothness import patch_similarity
from toco.tensors import Cams
from toco.train.trained import Trained


@dataclass(frozen=True, slots=True)
class Analysis:
    """Results of the network on one image; maps have the size of the network's input.

    Attributes:
        image: The analysed image, shrunk if it was too large.
        full_size: Height and width of the image before shrinking.
        network_input: The image as the network's input.
        cams: CAMs of all classes.
        class_logits: Logits of the classifier.
        segmentation: The decoder's label, 0 background, 1..k; ``None`` without a decoder.
        unit_tokens: Patch tokens after every block, of length 1.
        mean_similarity: Mean cosine similarity of different patches after every block.
    """

    image: UInt8[np.ndarray, "h w 3"]
    full_size: tuple[int, int]
    network_input: Float[Tensor, "1 3 h2 w2"]
    cams: Cams
    class_logits: Float[np.ndarray, " k"]
    segmentation: UInt8[np.ndarray, "h2 w2"] | None
    unit_tokens: tuple[Float[Tensor, "_ _ _"], ...]
    mean_similarity: tuple[float, ...]

    def cam_maps(self, class_index: int) -> Float[np.ndarray, "maps h2 w2"]:
        """All CAMs of a class (0-based), in the order of ``cams.by_name()``."""
        maps = torch.stack([cam[0, class_index] for cam in self.cams.by_name().values()])
        of_class: Float[np.ndarray, "maps h2 w2"] = maps.cpu().numpy()
        return of_class

    def similarity(self, y: float, x: float) -> list[Float[np.ndarray, "_ _"]]:
        """Cosine similarity of every patch with the patch at ``y x``, by block.

        ``y`` and ``x`` are fractions of the sides.
        """
        maps = []
        for tokens in self.unit_tokens:
            rows, columns, _ = tokens.shape
            chosen = tokens[min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)]
            maps.append((tokens @ chosen).cpu().numpy())
        return maps


class Analyst:
    """Analyses images with a trained method, one at a time, as its evaluation does.

    Args:
        trained: The method; ``evaluate`` of its config gives size and scales.
        max_side_px: Longer images are shrunk to this side first.

    Raises:
        ValueError: The method's pseudo labels do not come from two thresholds on a CAM.
    """

    def __init__(self, trained: Trained, max_side_px: int) -> None:
        self.trained, self.max_side_px = trained, max_side_px
        self.rule = trained.config.method.label_rule()

    @torch.no_grad()
    def analyse(self, image: UInt8[np.ndarray, "h w 3"]) -> Analysis:
        """Run the network on an image.

        Raises:
            ValueError: The image is too small for the network.
        """
        shrunk = _shrunk(image, self.max_side_px)
        method, evaluate = self.trained.method, self.trained.config.evaluate
        pixels = torch.from_numpy(shrunk.copy())[None].to(self.trained.config.torch_device())
        inputs = network_input(pixels, evaluate.size_px)
        height, width = inputs.shape[-2:]
        prediction = method.predict(inputs, evaluate.cam_scales, evaluate.cam_flip)
        logits = prediction.segmentation_logits
        return Analysis(
            image=shrunk,
            full_size=(image.shape[0], image.shape[1]),
            network_input=inputs,
            cams=prediction.cams,
            class_logits=prediction.class_logits[0].cpu().numpy(),
            segmentation=None
            if logits is None
            else resize_bilinear(logits, (height, width))[0].argmax(0).byte().cpu().numpy(),
            unit_tokens=tuple(
                normalize(tokens[0], dim=-1).unflatten(
                    0, patch_grid(tokens.shape[1], height / width)
                )
                for tokens in prediction.block_tokens
            ),
            mean_similarity=tuple(
                patch_similarity(tokens).item() for tokens in prediction.block_tokens
            ),
        )

    def refined_label(
        self, analysis: Analysis, cam: str, present: Sequence[int], low: float, high: float
    ) -> UInt8[np.ndarray, "h w"]:
        """Make the label that the decoder would learn from these CAMs.

        0 is background, 1..k are classes, and 255 is void.

        Args:
            analysis: Analysis of the image.
            cam: Name of one of its CAMs.
            present: Classes (0-based) that count as present.
            low: A pixel is background where this background score beats all classes.
            high: A pixel is foreground where a class beats this background score.

        Raises:
            ValueError: The low threshold exceeds the high one.
        """
        maps = analysis.cams.by_name()[cam]
        # Without present classes, one absent class is passed: the background then wins everywhere.
        classes = torch.tensor(sorted(present) or [0], device=maps.device)
        is_present = torch.full((1, len(classes)), float(bool(present)), device=maps.device)
        levels = denormalise_255(analysis.network_input, truncate=True)
        label = refine_pseudo_label(
            levels / 255, maps[:, classes], is_present, None, low, high, self.rule.par
        )
        refined: UInt8[np.ndarray, "h w"] = class_ids(label, classes[None])[0].byte().cpu().numpy()
        return refined


def patch_grid(num_patches: int, aspect: float) -> tuple[int, int]:
    """Find the rows and columns of ``num_patches`` patches for an image of this aspect.

    ``aspect`` is the height over the width.

    >>> patch_grid(31 * 23, 500 / 375)
    (31, 23)
    """
    grids = (
        (rows, num_patches // rows) for rows in range(1, num_patches + 1) if num_patches % rows == 0
    )
    return min(grids, key=lambda grid: abs(math.log(grid[0] / grid[1] / aspect)))


def _shrunk(image: UInt8[np.ndarray, "h w 3"], max_side_px: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    small = Image.fromarray(image)
    small.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    return np.asarray(small)
