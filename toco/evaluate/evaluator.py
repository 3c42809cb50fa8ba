"""Evaluate a method in one pass over a split: metrics, curves, data of the pictures."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor
from tqdm import tqdm

from toco.data import Dataset
from toco.evaluate.batches import in_order, plan_batches, read_ahead, read_batch
from toco.evaluate.cam_scores import score_cams
from toco.evaluate.config import EvaluateConfig
from toco.evaluate.confusions import Confusions
from toco.evaluate.report import Evaluation, describe_coverage, undefined_to_none
from toco.evaluate.scores import Part, Scores, gather
from toco.evaluate.sizes import network_input
from toco.methods import Method
from toco.metrics.cam_quality import CamQuality
from toco.metrics.multilabel import f1_per_image, mean_average_precision
from toco.metrics.segmentation import ClassScores, class_scores, mean_over_classes
from toco.types import Shard


class EvaluationStoppedError(RuntimeError):
    """An evaluation was asked to stop before it was complete."""


def evaluate(
    method: Method,
    dataset: Dataset,
    config: EvaluateConfig,
    device: torch.device | str,
    progress: bool = False,
    step: int | None = None,
    shard: Shard = Shard(),
    stop: threading.Event | None = None,
) -> Evaluation:
    """Evaluate ``method`` on a split; its training or evaluation mode is restored afterwards.

    Args:
        method: The method, on ``device``.
        dataset: The split.
        config: Settings of the evaluation.
        device: Device of ``method``.
        progress: Show a progress bar.
        step: Optimizer updates so far.
        shard: Share of this process in the default group of ``torch.distributed``. Every process of
            the group must call. They divide the batches, and each returns the complete evaluation,
            which equals that of a single process.
        stop: Gives the evaluation up before its next batch, once it is set. If one process of the
            group gives up, all do.

    Raises:
        EvaluationStoppedError: ``stop`` was set, here or in another process of the group.
        ValueError: The data set has another number of classes than the method, no images, or an
            image without a valid mask.
        RuntimeError: Another process of the group failed.
    """
    num_classes = len(dataset.class_names)
    if num_classes != method.num_foreground_classes:
        raise ValueError(
            f"The data set has {num_classes} foreground classes, the method "
            f"{method.num_foreground_classes}."
        )
    if len(dataset) == 0:
        raise ValueError("There is no image to evaluate: the split is empty.")
    stop = stop or threading.Event()
    parts = gather(
        lambda: _evaluate_part(method, dataset, config, device, progress, shard, stop), shard
    )
    if parts is None:
        raise EvaluationStoppedError("The evaluation was stopped before it was complete.")
    return _join_parts(parts, dataset, config, step)


def rescore(evaluation: Evaluation, confusions: Confusions, config: EvaluateConfig) -> Evaluation:
    """Compute the evaluation with other thresholds, exactly and without the network.

    Args:
        evaluation: An evaluation whose config differs from ``config`` in the background threshold
            and the curve only.
        confusions: The counts of ``evaluation``.
        config: Settings of the new evaluation.

    Raises:
        ValueError: The pixels were not counted at a threshold of ``config``.
    """
    thresholds = config.thresholds()

    def quality_at_thresholds(histogram: Integer[np.ndarray, "s k bins"]) -> CamQuality:
        return _quality_of(torch.from_numpy(histogram), confusions.thresholds.tolist()).at(
            thresholds
        )

    qualities = {
        name: quality_at_thresholds(histogram) for name, histogram in confusions.histograms.items()
    }
    cams = score_cams(qualities, thresholds, config.fixed_threshold_index())
    of_cams = tuple(f"val/{name}_" for name in qualities)
    other_metrics = {
        name: value for name, value in evaluation.metrics.items() if not name.startswith(of_cams)
    }
    return replace(
        evaluation,
        protocol=_protocol(config, cams.per_class["cam_iou"]),
        metrics=other_metrics | cams.metrics,
        per_class=evaluation.per_class | cams.per_class,
        threshold_curve=cams.threshold_curve,
        pictures=(),
        confusions=None,
    )


def evenly_spaced(total: int, count: int) -> list[int]:
    """Return at most ``count`` evenly spaced indices from 0 to ``total - 1``.

    >>> evenly_spaced(10, 4)
    [0, 3, 6, 9]
    """
    indices = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return np.unique(indices).tolist()  # type: ignore[no-any-return]


def _evaluate_part(
    method: Method,
    dataset: Dataset,
    config: EvaluateConfig,
    device: torch.device | str,
    progress: bool,
    shard: Shard,
    stop: threading.Event,
) -> Part | None:
    """Evaluate the batches of this process: every ``world_size``-th one.

    The result is ``None`` where ``stop`` was set.
    """
    # Plan the batches.
    indices = evenly_spaced(len(dataset), config.max_images or len(dataset))
    picture_indices = {indices[i] for i in evenly_spaced(len(indices), config.num_pictures)}
    batches = plan_batches(dataset, indices, config.batch_size, one_size=config.size_px is None)
    batches = batches[shard.rank :: shard.world_size]
    pin = torch.device(device).type == "cuda"
    scores = Scores(
        len(dataset.class_names), config.thresholds(), config.fixed_threshold_index(), device
    )
    # Predict, count and keep the data of pictures.
    was_training = method.training
    method.eval()
    try:
        with (
            torch.no_grad(),
            tqdm(
                total=sum(map(len, batches)),
                desc="evaluate",
                unit="image",
                leave=None,
                disable=not progress,
            ) as bar,
        ):
            for host_batch in read_ahead(read_batch(dataset, batch, pin) for batch in batches):
                if stop.is_set():
                    return None
                batch = host_batch.to(device)
                images = in_order(
                    [network_input(stack, config.size_px) for stack in batch.images], batch.rows
                )
                prediction = method.predict(
                    images, config.cam_scales, config.cam_flip, batch.present
                )
                scores.update(batch, prediction)
                picture_rows = [
                    row
                    for row, sample in enumerate(batch.samples)
                    if sample.index in picture_indices
                ]
                if picture_rows:
                    scores.draw(
                        batch,
                        prediction,
                        picture_rows,
                        method.pseudo_labels(
                            images[picture_rows], batch.class_labels[picture_rows]
                        ),
                    )
                bar.update(len(batch.samples))
    finally:
        method.train(was_training)
    return scores.part()


def _join_parts(
    parts: Sequence[Part], dataset: Dataset, config: EvaluateConfig, step: int | None
) -> Evaluation:
    """Join the parts of all processes into the evaluation."""
    # Sort images in the order of the split, which depends on neither batches nor processes.
    rows = {
        index: (batch, row)
        for part in parts
        for batch in part.batches
        for row, index in enumerate(batch.indices)
    }
    order = sorted(rows)
    # Stack row by row. The matrices of a large split take gigabytes, which cat and indexing would
    # copy twice.
    class_labels, class_logits, similarities, confusions = (
        torch.stack([getattr(batch, name)[row] for batch, row in map(rows.__getitem__, order)])
        for name in ("class_labels", "class_logits", "similarities", "confusions")
    )
    pictures = dict(sorted(chain.from_iterable(part.pictures.items() for part in parts)))
    thresholds = config.thresholds()
    # Score. A process without a batch has no maps and is left out.
    filled_parts = [part for part in parts if part.batches]
    qualities = {
        name: _quality_of(
            torch.stack([part.histograms[name] for part in filled_parts]).sum(0), thresholds
        )
        for name in filled_parts[0].histograms
    }
    cams = score_cams(qualities, thresholds, config.fixed_threshold_index())
    by_map = dict(zip(filled_parts[0].maps, confusions.unbind(1), strict=True))
    segmentation = class_scores(by_map["seg"].sum(0)) if "seg" in by_map else None
    similarity = similarities.T.contiguous().double().mean(1).tolist()
    metrics = {
        **_segmentation_metrics(segmentation),
        "label_f1": f1_per_image(class_labels, class_logits > 0).mean().item(),
        "label_map": mean_average_precision(class_labels, class_logits),
        "patch_similarity_last": similarity[-1],
    }
    class_names = ("background", *dataset.class_names)
    seg_iou = (
        {} if segmentation is None else {"seg_iou": undefined_to_none(segmentation.iou.tolist())}
    )
    return Evaluation(
        step=step,
        protocol=_protocol(config, cams.per_class["cam_iou"]),
        metrics={f"val/{name}": value for name, value in metrics.items() if np.isfinite(value)}
        | cams.metrics,
        class_names=class_names,
        per_class=seg_iou | cams.per_class,
        threshold_curve=cams.threshold_curve,
        patch_similarity=undefined_to_none(similarity),
        pictures=tuple(pictures.values()),
        confusions=Confusions(
            names=tuple(dataset.names[index] for index in order),
            class_names=class_names,
            matrices={name: counts.numpy() for name, counts in by_map.items()},
            thresholds=np.array(thresholds),
            histograms={name: quality.histogram.numpy() for name, quality in qualities.items()},
        ),
    )


def _segmentation_metrics(scores: ClassScores | None) -> dict[str, float]:
    if scores is None:
        return {}
    return {
        "seg_miou": mean_over_classes(scores.iou).item(),
        "seg_pixel_accuracy": scores.pixel_accuracy.item(),
    }


def _protocol(config: EvaluateConfig, iou: Sequence[float | None]) -> str:
    """Describe the protocol as text, with the coverage of classes where it is not complete."""
    coverage = describe_coverage(iou)
    return config.protocol() + ("" if coverage is None else f" {coverage}")


def _quality_of(histogram: Integer[Tensor, "s k bins"], thresholds: Sequence[float]) -> CamQuality:
    quality = CamQuality(histogram.shape[1], thresholds)
    quality.histogram += histogram
    return quality
