"""Pseudo labels as the masks of a second training: from the CAM, refined by PAR, by a dense CRF, or by both."""

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
"""The CRF on CAMs of the official ``tools/infer_cam_crf_label.py``."""


class PseudoLabelConfig(Config):
    """From CAMs to pseudo labels.

    Attributes:
        low_threshold: Background score that certain background wins with.
        high_threshold: Background score that certain foreground wins against. Between them a pixel
            is uncertain (255).
        par: Refine by pixel-adaptive refinement, or not.
        crf: Refine by a dense CRF, or not; after PAR if there are both.
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
    """The pseudo label of an image at its own size: 0 background, 1..k, 255 uncertain.

    From the final CAM by the protocol of the evaluation, for the classes of the image-level label,
    resized to the image. Without refinement the CAM is compared with both thresholds. PAR gives
    what :meth:`toco.methods.Method.pseudo_labels` gives where the CAM's settings are those of
    training. A CRF starts from the softmax over background score and CAMs (PAR's result instead, if
    there is one), once with each background score; as with PAR, a class counts where it wins
    against the high one, background where it wins with the low one.

    Source of the CRF's: official ``tools/infer_cam_crf_label.py``.
    """
    height, width, _ = image.shape
    labels = torch.from_numpy(class_labels)[None].to(device)
    present = present_classes(labels)
    cam = resize_bilinear(cams_of(method, image, present, evaluate, device).cam, (height, width))
    labels = labels.gather(1, present)
    levels = torch.tensor(image, device=device)[None]
    # A byte less for some levels, as officially.
    colours = denormalise_255(network_input(levels, None), truncate=True) / 255
    low, high, par = config.low_threshold, config.high_threshold, config.par
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
    found: UInt8[np.ndarray, "h w"] = class_ids(label, present)[0].byte().cpu().numpy()
    return found


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
    """Write :func:`pseudo_label` of each image as a PNG in VOC's palette.

    What ``out`` holds of the same image and label is not made again.

    Args:
        method: In evaluation mode, on ``device``.
        dataset: Images and image-level labels.
        evaluate: The protocol of the CAMs.
        config: From CAMs to labels.
        out: The folder.
        about: What the method is; its outputs and those of another are not mixed.
        shard: Which share of the images is worked on.
        device: Where the method is.
        progress: Show a bar.

    Raises:
        ValueError: An image or its label cannot be read (all are tried first), or ``out`` was made
            in another way.
    """
    made_by = {**about, **cam_protocol(evaluate), **config.model_dump(mode="json")}
    folder = open_labelled(dataset, out, made_by, ".png", shard, progress=progress)

    def make(index: int) -> bytes:
        image, class_labels = dataset.image(index), dataset.class_labels(index)
        return index_png(pseudo_label(method, image, class_labels, evaluate, config, device))

    folder.fill(make, shard, doing="export pseudo labels", progress=progress)
    return folder


def score_pseudo_labels(
    folder: OutputFolder, dataset: Dataset, *, progress: bool = False
) -> str | None:
    """The mIoU of exported pseudo labels in a sentence, or ``None`` if the data set has no masks, or only void ones.

    One confusion matrix over all images with a mask, and the mean over the classes in the ground
    truth. A pixel that is 255 in the mask or in the pseudo label counts for nothing, so the
    sentence says how many of the latter there are.
    """
    confusion, without_mask, num_pixels = count_pixels(folder, dataset, progress=progress)
    if not num_pixels:
        return None
    miou = mean_over_classes(confusion.scores().iou).item()
    uncertain = 1 - int(confusion.matrix.sum()) / num_pixels
    return (
        f"mIoU of the pseudo labels {100 * miou:.2f} %; images with a mask: {len(dataset) - len(without_mask)}. "
        f"{100 * uncertain:.2f} % of the pixels are uncertain ({IGNORE_INDEX}) and count for nothing."
    )


def _refined_by_crf(
    levels: Float[Tensor, "1 3 h w"], low_and_high: Float[Tensor, "2 s h w"], config: CrfConfig
) -> Int[Tensor, "1 h w"]:
    """Labels that a CRF finds with the low and with the high background score, as one: 255 where they disagree."""
    # PAR's maps sum to more than 1, all to the same.
    probabilities = low_and_high / low_and_high.sum(1, keepdim=True)
    with_low, with_high = (
        dense_crf(levels, maps[None], config).max(1).indices for maps in probabilities
    )
    return where_certain(with_low, with_high)
