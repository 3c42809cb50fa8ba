"""Count the batches of one process, and gather the counts of all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Integer
from torch import Tensor

from toco.evaluate.batches import LabelledImage, SampleBatch, in_order, take
from toco.evaluate.report import Picture
from toco.evaluate.sizes import resize_bilinear, resize_nearest
from toco.metrics.cam_quality import CamQuality
from toco.metrics.segmentation import count_by_image
from toco.metrics.smoothness import patch_similarity
from toco.tensors import Prediction
from toco.types import Shard


@dataclass(frozen=True, slots=True)
class CountedBatch:
    """Counts and logits of the images of one batch, on the host.

    Attributes:
        indices: Indices of the images in the split, row by row.
        class_labels: Multi-hot ground truth.
        class_logits: Logits of the classifier.
        similarities: Mean cosine similarity of the patches after every block.
        confusions: Confusion matrices by label map: of the segmentation, if there is one, and of
            each CAM at the fixed threshold.
    """

    indices: tuple[int, ...]
    class_labels: Float[Tensor, "b k"]
    class_logits: Float[Tensor, "b k"]
    similarities: Float[Tensor, "b blocks"]
    confusions: Int32[Tensor, "b maps s s"]


@dataclass(frozen=True, slots=True)
class Part:
    """One process's part of an evaluation, on the host.

    Attributes:
        batches: Counts of its batches.
        maps: Names of the label maps in ``CountedBatch.confusions``; empty without a batch.
        histograms: Histogram of each CAM by name; empty without a batch.
        pictures: Data of the panels, by index of the image in the split.
    """

    batches: tuple[CountedBatch, ...]
    maps: tuple[str, ...]
    histograms: dict[str, Int64[Tensor, "s k bins"]]
    pictures: dict[int, Picture]


class Scores:
    """All accumulators of one process.

    Counting a batch does not wait for the device; keeping the data of its pictures does.
    """

    def __init__(
        self,
        num_foreground_classes: int,
        thresholds: Sequence[float],
        fixed_threshold_index: int,
        device: torch.device | str,
    ) -> None:
        self.num_classes = num_foreground_classes + 1
        self.fixed = fixed_threshold_index
        self.new_quality = partial(CamQuality, num_foreground_classes, thresholds, device)
        self.maps: tuple[str, ...] = ()
        self.qualities: dict[str, CamQuality] = {}
        self.batches: list[CountedBatch] = []
        self.pictures: dict[int, Picture] = {}

    def update(self, batch: SampleBatch, prediction: Prediction) -> None:
        """Count a batch whose tensors are on the device, with the CAMs of its present classes."""
        by_name = prediction.cams.by_name()
        cams = torch.cat(list(by_name.values()), dim=1)
        if not self.batches:
            self.qualities = {name: self.new_quality() for name in by_name}
            self.maps = (*(() if prediction.segmentation_logits is None else ("seg",)), *by_name)
        confusions: list[Integer[Tensor, "_ maps s s"]] = []
        # Masks keep their own resolution; masks of the same size are scored together.
        for mask, rows in zip(batch.masks, batch.rows, strict=True):
            height, width = mask.shape[1:]
            matrices = []
            if prediction.segmentation_logits is not None:
                logits = resize_bilinear(
                    take(prediction.segmentation_logits, rows), (height, width)
                )
                # On a CPU max is several times faster than argmax, and also returns the first class
                # on ties.
                predicted = logits.max(dim=1).indices
                matrices.append(count_by_image(mask, predicted, self.num_classes, self.num_classes))
            resized = resize_bilinear(take(cams, rows), (height, width)).chunk(len(by_name), dim=1)
            class_labels, present = take(batch.class_labels, rows), take(batch.present, rows)
            for quality, cam in zip(self.qualities.values(), resized, strict=True):
                counts = quality.count(mask, cam, class_labels, present)
                quality.add(counts)
                matrices.append(counts.confusions(self.fixed))
            confusions.append(torch.stack(matrices, dim=1))
        similarities = [patch_similarity(tokens) for tokens in prediction.block_tokens]
        self.batches.append(
            CountedBatch(
                indices=tuple(sample.index for sample in batch.samples),
                class_labels=_to_host(batch.class_labels),
                class_logits=_to_host(prediction.class_logits),
                similarities=_to_host(torch.stack(similarities, dim=1)),
                confusions=_to_host(in_order(confusions, batch.rows).int()),
            )
        )

    def draw(
        self,
        batch: SampleBatch,
        prediction: Prediction,
        rows: Sequence[int],
        pseudo_labels: Integer[Tensor, "_ p q"],
    ) -> None:
        """Keep the data of the pictures of ``rows``."""
        for row, pseudo_label in zip(rows, pseudo_labels, strict=True):
            sample = batch.samples[row]
            present_labels = batch.class_labels[row, batch.present[row].long()]
            self.pictures[sample.index] = _picture(
                sample, present_labels, prediction, row, pseudo_label
            )

    def part(self) -> Part:
        """Wait for the device, and return the counts of all batches."""
        # These copies wait for the device, and with it for the asynchronous copies before them.
        histograms = {name: quality.histogram.cpu() for name, quality in self.qualities.items()}
        return Part(tuple(self.batches), self.maps, histograms, self.pictures)


def gather(find: Callable[[], Part | None], shard: Shard) -> list[Part] | None:
    """Compute this process's part, and gather the parts of all ranks in their order.

    Args:
        find: Computes the part of this process; ``None`` where it gave up.
        shard: Share of this process in the default group of ``torch.distributed``.

    Returns:
        The parts; ``None`` where a process gave up.

    Raises:
        RuntimeError: Another process failed. An error of ``find`` in this process is raised
            unchanged.
    """
    if shard.world_size == 1:
        return None if (part := find()) is None else [part]
    outcome: Part | str | None
    error: Exception | None = None
    try:
        outcome = find()
    except Exception as raised:  # any error: the other processes wait for a part or a message
        error, outcome = raised, f"{type(raised).__name__}: {raised}"
    outcomes: list[Part | str | None] = [None] * shard.world_size
    torch.distributed.all_gather_object(outcomes, outcome)
    if error is not None:
        raise error
    for rank, message in enumerate(outcomes):
        if isinstance(message, str):
            raise RuntimeError(
                f"Process {rank} could not evaluate its part of the images: {message}"
            )
    parts = [part for part in outcomes if isinstance(part, Part)]
    return parts if len(parts) == shard.world_size else None


def _to_host(tensor: Tensor) -> Tensor:
    # From a GPU this copies to pinned memory, in order after the kernels. The values may be read
    # only after a wait for the device.
    return tensor.to("cpu", non_blocking=True)


def _picture(
    sample: LabelledImage,
    present_labels: Float[Tensor, " m"],
    prediction: Prediction,
    row: int,
    pseudo_label: Integer[Tensor, "p q"],
) -> Picture:
    height, width = sample.mask.shape
    size = (height, width)

    def strongest(cam: Tensor) -> Float[np.ndarray, "h w"]:
        maximum: Float[np.ndarray, "h w"] = (
            (resize_bilinear(cam[row : row + 1], size)[0] * present_labels[:, None, None])
            .amax(0)
            .cpu()
            .numpy()
        )
        return maximum

    logits = prediction.segmentation_logits
    return Picture(
        name=sample.name,
        class_labels=sample.class_labels,
        image=sample.image,
        cams={name: strongest(cam) for name, cam in prediction.cams.by_name().items()},
        pseudo_label=resize_nearest(pseudo_label[None], size)[0].cpu().numpy(),
        prediction=None
        if logits is None
        else resize_bilinear(logits[row : row + 1], size).argmax(1)[0].cpu().numpy(),
        mask=sample.mask,
    )
