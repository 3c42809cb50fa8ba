"""Predictions of a split, one label image per file, and the scores of these files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor
from tqdm import tqdm

from toco.data import Dataset
from toco.evaluate.batches import read_ahead
from toco.evaluate.report import class_table, undefined_to_none
from toco.methods import Method
from toco.metrics.segmentation import ConfusionMatrix, mean_over_classes
from toco.predict.config import InferenceConfig
from toco.predict.formats import label_png, read_index_png
from toco.predict.inference import network_probabilities, refined
from toco.predict.output_folder import OutputFolder
from toco.types import IGNORE_INDEX, Shard

FORMAT_VERSION = 1
"""Version of the JSON of the scores."""


@dataclass(frozen=True, slots=True)
class PredictionScores:
    """Scores of the predictions of a split, as fractions.

    Attributes:
        about: Settings of the predictions, as recorded in their folder, and ``images``, the digest
            of the split.
        protocol: Settings of the predictions as text.
        num_images: Number of scored images.
        metrics: ``miou`` and ``pixel_accuracy``.
        class_names: Names of the classes, the background first.
        per_class: Scores in the order of ``class_names``; ``None`` for a class that is not in the
            ground truth.
    """

    about: Mapping[str, Any]
    protocol: str
    num_images: int
    metrics: dict[str, float]
    class_names: tuple[str, ...]
    per_class: dict[str, tuple[float | None, ...]]

    def to_json(self) -> str:
        """Format as strict JSON, with ``null`` for undefined scores."""
        content = {"format_version": FORMAT_VERSION} | {
            name: getattr(self, name) for name in self.__slots__
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def table(self) -> str:
        """Format the scores per class and their means as text, in percent."""
        return class_table(self.class_names, self.per_class)


def open_predictions(
    path: Path, dataset: Dataset, config: InferenceConfig, about: Mapping[str, Any]
) -> OutputFolder:
    """Open the folder of the predictions of a split; raises as :class:`OutputFolder`.

    Args:
        path: The folder.
        dataset: The split.
        config: Configuration of inference, without ``auto``.
        about: Everything else that determines a prediction, such as the network's weights and the
            settings of the data.
    """
    settings = {**about, "inference": config.model_dump(mode="json")}
    return OutputFolder(path, settings, dataset.names, ".png", dataset.image_sha256)


def predict_split(
    method: Method,
    dataset: Dataset,
    config: InferenceConfig,
    device: torch.device | str,
    folder: OutputFolder,
    *,
    without_crf: OutputFolder | None = None,
    shard: Shard = Shard(),
    progress: bool = False,
) -> None:
    """Write the missing predictions of a shard of the split.

    Args:
        method: Method in evaluation mode, on ``device``.
        dataset: The split.
        config: Configuration of inference.
        device: Device of the network and of the CRF.
        folder: Folder of the predictions.
        without_crf: Folder of the predictions before the CRF; ``None`` for none.
        shard: Part of the images that this process handles.
        progress: Whether to show a progress bar.
    """

    def before_crf(index: int) -> tuple[UInt8[Tensor, "h w 3"], Float[Tensor, "s h w"]]:
        image = torch.tensor(dataset.image(index), device=device)
        return image, network_probabilities(method, image, config)

    def predict(index: int) -> bytes:
        image, probabilities = before_crf(index)
        if without_crf is not None:
            without_crf.write(index, label_png(probabilities))
        if config.crf is not None:
            probabilities = refined(image, probabilities, config.crf)
        return label_png(probabilities)

    folder.fill(predict, shard, task="predict", progress=progress)
    if without_crf is not None:
        # Images that already have a prediction with the CRF.
        without_crf.fill(
            lambda index: label_png(before_crf(index)[1]),
            shard,
            task="without CRF",
            progress=progress,
        )


def score_predictions(
    folder: OutputFolder, dataset: Dataset, config: InferenceConfig, progress: bool = False
) -> PredictionScores | None:
    """Compute the scores of all predictions from their files; ``None`` without ground truth.

    Raises:
        OSError: A prediction is missing or cannot be read.
        ValueError: A mask cannot be read, or only some of the images have a mask.
    """
    confusion, without_mask, _ = count_pixels(folder, dataset, progress=progress)
    num_images = len(dataset) - len(without_mask)
    if num_images and without_mask:
        raise ValueError(
            f"{len(without_mask)} of {len(dataset)} images have no mask, such as "
            f"{without_mask[0]!r}, so that the scores would not cover the split; add the masks, or "
            "remove the images from the list."
        )
    if not confusion.matrix.any():
        return None
    scores = confusion.scores()
    return PredictionScores(
        about={**folder.about, "images": dataset.manifest_digest()},
        protocol=(
            f"{config.protocol()} mIoU: one confusion matrix over the {num_images} images, "
            "void excluded, mean over the classes in the ground truth."
        ),
        num_images=num_images,
        metrics={
            "miou": mean_over_classes(scores.iou).item(),
            "pixel_accuracy": scores.pixel_accuracy.item(),
        },
        class_names=("background", *dataset.class_names),
        per_class={
            "seg_iou": undefined_to_none(scores.iou.tolist()),
            "precision": undefined_to_none(scores.precision.tolist()),
            "recall": undefined_to_none(scores.recall.tolist()),
        },
    )


def count_pixels(
    folder: OutputFolder, dataset: Dataset, *, progress: bool
) -> tuple[ConfusionMatrix, list[str], int]:
    """Compare label files with the ground truth.

    Returns:
        The confusion matrix over all images with a mask, the names of images without a mask, and
        the number of pixels that are not void in the masks.
    """
    confusion, without_mask, num_pixels = (
        ConfusionMatrix(len(dataset.class_names) + 1),
        list[str](),
        0,
    )

    def pairs() -> Iterator[tuple[UInt8[ndarray, "h w"], UInt8[ndarray, "h w"]] | None]:
        for index in range(len(dataset)):
            try:
                mask = dataset.mask(index)
            except LookupError:
                without_mask.append(dataset.names[index])
                yield None
            else:
                yield mask, read_index_png(folder.output(index))

    for pair in tqdm(
        read_ahead(pairs()), total=len(dataset), desc="score", unit="image", disable=not progress
    ):
        if pair is not None:
            mask, label = pair
            confusion.update(torch.tensor(mask), torch.tensor(label))
            num_pixels += int((mask != IGNORE_INDEX).sum())
    return confusion, without_mask, num_pixels


def weights_digest(method: Method) -> str:
    """Return the first 16 hex digits of the SHA-256 of a network's state."""
    total = hashlib.sha256()
    for name, tensor in method.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:16]
