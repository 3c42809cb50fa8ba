"""Pseudo labels for a second training: CAMs, optionally refined by PAR and a dense CRF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, UInt8
from pydantic import Field, model_validator
from torch import Tensor

from toco.cam.config import CrfConfig, ParConfig
from toco.cam.crf import dense_crf
from toco.cam.labels import cam_to_pseudo_label, check_thresholds, class_ids, where_certain
from toco.cam.par import refine_pseudo_label, refined_probabilities
from toco.config import Config
from toco.data import Dataset
from toco.data.views.normalise import denormalise_255
from toco.evaluate.config import EvaluateConfig
from toco.evaluate.sizes import network_input, resize_bilinear
from toco.methods import Method
from toco.metrics.segmentation import mean_over_classes
from toco.predict.cams import cam_protocol, cams_of, open_labelled
from toco.predict.formats import index_png
from toco.predict.output_folder import OutputFolder
from toco.predict.split_predictions import count_pixels
from toco.tensors import present_classes
from toco.types import IGNORE_INDEX, Shard

OFFICIAL_CAM_CRF = CrfConfig(
    position_weight=3,
    position_sigma=3,
    bilateral_weight=4,
    bilateral_sigma_xy=36,
    bilateral_sigma_rgb=3,
)
"""CRF on CAMs with the values of the official ``tools/infer_cam_crf_label.py``."""


class PseudoLabelConfig(Config):
    """Conversion of CAMs to pseudo labels.

    Attributes:
        low_threshold: Low background score: a pixel is background if this score is the highest.
        high_threshold: High background score: a pixel has a class if the class's score is higher.
            Pixels in between are uncertain (255).
        par: Pixel-adaptive refinement; ``None`` for none.
        crf: Dense CRF, after PAR if both are set; ``None`` for none.
    """

    low_threshold: float = Field(ge=0, le=1)
    high_threshold: float = Field(ge=0, le=1)
    par: ParConfig | None = None
    crf: CrfConfig | None = None

    @model_validator(mode="after")
    def _in_order(self) -> PseudoLabelConfig:
        check_thresholds(self.low_threshold, self.high_threshold)
        return self


@torch.no_grad()
def pseudo_label(
    method: Method,
    image: UInt8[np.ndarray, "h w 3"],
    class_labels: Float32[np.ndarray, " k"],
    evaluate: EvaluateConfig,
    config: PseudoLabelConfig,
    device: torch.device | str = "cpu",
) -> UInt8[np.ndarray, "h w"]:
    """Make the pseudo label of an image at its own size: 0 background, 1..k, 255 uncertain.

    It starts from the final CAM as in the evaluation, for the classes of the image-level label,
    resized to the image.

    - Without refinement, the CAM is compared with both thresholds.
    - PAR gives the same result as :meth:`toco.methods.Method.pseudo_labels` if the CAM's settings
      are those of training.
    - The CRF runs once with each background score, on the softmax over background score and CAMs,
      or on PAR's result. As with PAR, a pixel gets a class that wins against the high score, and
      background if it wins with the low score.

    Source of the CRF: official ``tools/infer_cam_crf_label.py``.
    """
    # CAM at the image's size, and the image as the official code sees it.
    height, width, _ = image.shape
    labels = torch.from_numpy(class_labels)[None].to(device)
    present = present_classes(labels)
    cam = resize_bilinear(cams_of(method, image, present, evaluate, device).cam, (height, width))
    labels = labels.gather(1, present)
    levels = torch.tensor(image, device=device)[None]
    # Truncated levels, as in the official code: some are one lower.
    colours = denormalise_255(network_input(levels, None), truncate=True) / 255
    low, high, par = config.low_threshold, config.high_threshold, config.par

    # Labels: from CRF (with or without PAR), from PAR, or from the thresholds alone.
    if config.crf is not None:
        if par is None:
            masked = cam.masked_fill((labels == 0)[:, :, None, None], -torch.inf)
            maps = torch.cat(
                [F.pad(masked, (0, 0, 0, 0, 1, 0), value=score).softmax(1) for score in (low, high)]
            )
        else:
            refined = refined_probabilities(colours, cam, labels, (low, high), par)[0]
            maps = resize_bilinear(refined, (height, width))
        label = _refined_by_crf(levels.permute(0, 3, 1, 2).float(), maps, config.crf)
    elif par is not None:
        label = refine_pseudo_label(colours, cam, labels, None, low, high, par)
    else:
        label = cam_to_pseudo_label(cam, labels, low, high)
    label_image: UInt8[np.ndarray, "h w"] = class_ids(label, present)[0].byte().cpu().numpy()
    return label_image


def export_pseudo_labels(
    method: Method,
    dataset: Dataset,
    evaluate: EvaluateConfig,
    config: PseudoLabelConfig,
    out: Path,
    about: Mapping[str, Any],
    shard: Shard = Shard(),
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> OutputFolder:
    """Write the :func:`pseudo_label` of each image as a PNG in VOC's palette.

    Images whose file is up to date are skipped.

    Args:
        method: Method in evaluation mode, on ``device``.
        dataset: Images and image-level labels.
        evaluate: Protocol of the CAMs.
        config: Conversion of CAMs to labels.
        out: Output folder.
        about: Identity of the method; a folder does not mix outputs of different methods.
        shard: Part of the images that this process handles.
        device: Device of the method.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: An image or its label cannot be read (all are read before the work starts), or
            the files in ``out`` were made with other settings.
    """
    settings = {**about, **cam_protocol(evaluate), **config.model_dump(mode="json")}
    folder = open_labelled(dataset, out, settings, ".png", shard, progress=progress)

    def make(index: int) -> bytes:
        image, class_labels = dataset.image(index), dataset.class_labels(index)
        return index_png(pseudo_label(method, image, class_labels, evaluate, config, device))

    folder.fill(make, shard, task="export pseudo labels", progress=progress)
    return folder


def score_pseudo_labels(
    folder: OutputFolder, dataset: Dataset, *, progress: bool = False
) -> str | None:
    """Compute the mIoU of exported pseudo labels, as text; ``None`` without ground truth.

    One confusion matrix covers all images with a mask; the mean is over the classes in the ground
    truth. Pixels that are 255 in the mask or in the pseudo label are ignored, so the text also
    gives the share of uncertain pixels.
    """
    confusion, without_mask, num_pixels = count_pixels(folder, dataset, progress=progress)
    if not num_pixels:
        return None
    miou = mean_over_classes(confusion.scores().iou).item()
    uncertain = 1 - int(confusion.matrix.sum()) / num_pixels
    return (
        f"mIoU of the pseudo labels {100 * miou:.2f} %; images with a mask: "
        f"{len(dataset) - len(without_mask)}. {100 * uncertain:.2f} % of the pixels are uncertain "
        f"({IGNORE_INDEX}) and are ignored."
    )


def _refined_by_crf(
    levels: Float[Tensor, "1 3 h w"], low_and_high: Float[Tensor, "2 s h w"], config: CrfConfig
) -> Int[Tensor, "1 h w"]:
    """Merge the CRF's labels with low and high background score; 255 where they disagree."""
    # PAR scales all maps of a pixel by the same factor; let them sum to 1 again.
    probabilities = low_and_high / low_and_high.sum(1, keepdim=True)
    with_low, with_high = (
        dense_crf(levels, maps[None], config).max(1).indices for maps in probabilities
    )
    return where_certain(with_low, with_high)
