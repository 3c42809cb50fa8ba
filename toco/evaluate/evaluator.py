"""One pass over a split: every metric, the data of the curves, and what the pictures show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from toco.cam.labels import cam_to_label
from toco.config import RUN_ONLY, Config
from toco.data._dataset import Dataset
from toco.evaluate.cam_scores import score_cams
from toco.evaluate.confusions import Confusions
from toco.evaluate.report import Evaluation, Picture, undefined_to_none
from toco.evaluate.sizes import network_input, resize_bilinear, resize_nearest
from toco.methods._method import Method
from toco.metrics.cam_quality import CamQuality
from toco.metrics.multilabel import f1_per_image, mean_average_precision
from toco.metrics.segmentation import class_scores, confusion_by_image, mean_over_classes
from toco.metrics.smoothness import patch_similarity
from toco.types import Prediction

_OFFICIAL_SIZE_PX = 448
_OFFICIAL_SCALES = {0.5, 1.0, 1.5}


class EvaluateConfig(Config):
    """How a method is evaluated. The defaults are the official validation on PASCAL VOC.

    Attributes:
        size_px: Every image is squashed to a square of this side; ``None`` keeps its own size.
        cam_scales: Scales whose CAMs are summed; 1.0 always takes part.
        cam_flip: Take the maximum with the CAM of the mirrored image.
        background_threshold: A pixel is background where its CAM is at most this. 0.5 for VOC, 0.45 for COCO.
        curve_stop: Last threshold of the curve, which starts at 0.
        curve_step: Distance of its thresholds.
        max_images: Evaluate this many images, evenly spaced over the split; ``None`` means all of them.
        average_last: A training's result is the mean over this many last evaluations.
        batch_size: Images that pass the network at once.
        num_pictures: Images to draw, evenly spaced over those evaluated.
    """

    size_px: int | None = Field(default=448, ge=16)
    cam_scales: tuple[float, ...] = (1.0, 0.5, 1.5)
    cam_flip: bool = True
    background_threshold: float = Field(default=0.5, ge=0, lt=1)
    curve_stop: float = Field(default=0.95, ge=0, lt=1)
    curve_step: float = Field(default=0.01, ge=0.001)
    max_images: int | None = Field(default=None, ge=1)
    average_last: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1, json_schema_extra={RUN_ONLY: True})
    num_pictures: int = Field(default=8, ge=0, json_schema_extra={RUN_ONLY: True})

    @model_validator(mode="after")
    def _positive_scales(self) -> EvaluateConfig:
        if any(scale <= 0 for scale in self.cam_scales):
            raise ValueError(f"cam_scales have to be positive; got {self.cam_scales}")
        return self

    def thresholds(self) -> tuple[float, ...]:
        """Thresholds of the curve, with the fixed one among them, ascending."""
        # Rounded, so that 0.5 is one of 0.00, 0.01, ... and not a neighbour of 50 * 0.01.
        grid = (round(i * self.curve_step, 6) for i in range(round(self.curve_stop / self.curve_step) + 1))
        return tuple(sorted({*grid, round(self.background_threshold, 6)}))

    def protocol(self) -> str:
        """The protocol in words, to stand beside every number."""
        size = "at their own size" if self.size_px is None else f"squashed to {self.size_px} x {self.size_px} px"
        scales = ", ".join(f"{scale:g}" for scale in dict.fromkeys((1.0, *self.cam_scales)))
        official = (
            self.size_px == _OFFICIAL_SIZE_PX
            and {1.0, *self.cam_scales} == _OFFICIAL_SCALES
            and self.cam_flip
            and self.max_images is None
        )
        return (
            f"{'The official validation protocol of ToCo' if official else 'Not the official protocol'}: images {size} "
            f"(bilinear), {'all of the split' if self.max_images is None else f'at most {self.max_images}'}. "
            f"CAM: scales {scales} {'with' if self.cam_flip else 'without'} flip, restricted to the ground-truth "
            f"image-level labels of the evaluated images, resized to the mask, background where it is at most "
            f"{self.background_threshold:g}; no PAR, no CRF. cam_best_threshold is chosen with the masks of this very "
            "split. Segmentation: one scale, no flip, no CRF. mIoU: one confusion matrix over the split, void "
            "excluded, mean over the classes in the ground truth; precision, recall, FP and FN rates over the same "
            "classes. Label F1: logits above 0, mean over images."
        )


def evaluate(
    method: Method,
    dataset: Dataset,
    config: EvaluateConfig,
    device: torch.device | str,
    progress: bool = False,
    step: int | None = None,
) -> Evaluation:
    """Evaluate ``method``, which has to be on ``device``, and leave it in the mode it was in.

    Raises:
        ValueError: The data set has other classes than the method, no images, or an image without a mask.
    """
    num_classes = len(dataset.class_names)
    if num_classes != method.num_foreground_classes:
        raise ValueError(
            f"The data set has {num_classes} foreground classes, the method {method.num_foreground_classes}."
        )
    if len(dataset) == 0:
        raise ValueError("There is no image to evaluate: the split is empty.")
    indices = evenly_spaced(len(dataset), config.max_images or len(dataset))
    pictured = {indices[i] for i in evenly_spaced(len(indices), config.num_pictures)}
    scores = _Scores(num_classes, config, device)
    pictures: list[Picture] = []

    was_training = method.training
    method.eval()
    try:
        with torch.no_grad(), tqdm(total=len(indices), desc="evaluate", unit="image", disable=not progress) as bar:
            for samples in _batches(dataset, indices, config.batch_size, one_size=config.size_px is None):
                images = network_input([sample.image for sample in samples], config.size_px, device)
                class_labels = torch.from_numpy(np.stack([sample.class_labels for sample in samples])).to(device)
                prediction = method.predict(images, config.cam_scales, config.cam_flip)
                scores.update(samples, class_labels, prediction)
                drawn = [row for row, sample in enumerate(samples) if sample.index in pictured]
                if drawn:
                    labels = method.pseudo_labels(images[drawn], class_labels[drawn])
                    pictures += [
                        _picture(samples[row], class_labels[row], prediction, row, labels[i : i + 1])
                        for i, row in enumerate(drawn)
                    ]
                bar.update(len(samples))
    finally:
        method.train(was_training)
    return scores.evaluation(("background", *dataset.class_names), step, tuple(pictures))


def can_rescore(confusions: Confusions, config: EvaluateConfig) -> bool:
    """Whether the pixels were counted at every threshold of ``config``."""
    return set(config.thresholds()) <= set(confusions.thresholds.tolist())


def rescore(evaluation: Evaluation, confusions: Confusions, config: EvaluateConfig) -> Evaluation:
    """What an evaluation with other thresholds would have found, exactly, from what this one counted.

    Args:
        evaluation: An evaluation whose config differs from ``config`` in the background threshold and the curve only.
        confusions: What it counted.
        config: How it would have been evaluated.

    Raises:
        ValueError: The pixels were not counted at a threshold of ``config``.
    """
    thresholds = config.thresholds()

    def counted(histogram: Integer[np.ndarray, "s k bins"]) -> CamQuality:
        quality = CamQuality(histogram.shape[1], confusions.thresholds.tolist())
        quality.histogram += torch.from_numpy(histogram)
        return quality.at(thresholds)

    cam, aux_cam = counted(confusions.cam_histogram), counted(confusions.aux_cam_histogram)
    cams = score_cams(cam, aux_cam, thresholds, config.background_threshold)
    kept = {name: v for name, v in evaluation.metrics.items() if not name.startswith(("val/cam_", "val/aux_cam_"))}
    return replace(
        evaluation,
        protocol=config.protocol(),
        metrics=kept | cams.metrics,
        per_class={"seg_iou": evaluation.per_class["seg_iou"]} | cams.per_class,
        threshold_curve=cams.threshold_curve,
        pictures=(),
        confusions=None,
    )


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most ``count`` different indices below ``total``, evenly spaced, the first and the last among them.

    >>> evenly_spaced(10, 4)
    [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Sample:
    index: int
    name: str
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    class_labels: Float[np.ndarray, " k"]


def _batches(dataset: Dataset, indices: Sequence[int], batch_size: int, one_size: bool) -> Iterator[list[_Sample]]:
    """Consecutive samples, at most ``batch_size``, and with ``one_size`` only as far as their images agree in size."""
    batch: list[_Sample] = []
    for index in indices:
        name = dataset.names[index]
        try:
            mask = dataset.mask(index)
        except LookupError as error:
            raise ValueError(f"Evaluation needs a mask of every image; {name!r} has none. {error}") from error
        sample = _Sample(index, name, dataset.image(index), mask, dataset.class_labels(index))
        if batch and (len(batch) == batch_size or (one_size and sample.image.shape != batch[0].image.shape)):
            yield batch
            batch = []
        batch.append(sample)
    yield batch


def _size(sample: _Sample) -> tuple[int, int]:
    height, width = sample.mask.shape
    return height, width


class _Scores:
    """All accumulators of one evaluation."""

    def __init__(self, num_foreground_classes: int, config: EvaluateConfig, device: torch.device | str) -> None:
        self.config = config
        self.num_classes = num_foreground_classes + 1
        self.cam = CamQuality(num_foreground_classes, config.thresholds(), device)
        self.aux_cam = CamQuality(num_foreground_classes, config.thresholds(), device)
        self.indices: list[int] = []
        self.names: list[str] = []
        self.confusions: list[Integer[Tensor, "b maps s s"]] = []
        self.class_labels: list[Tensor] = []
        self.class_logits: list[Tensor] = []
        self.similarities: list[Tensor] = []

    def update(self, samples: Sequence[_Sample], class_labels: Float[Tensor, "b k"], prediction: Prediction) -> None:
        self.class_labels.append(class_labels)
        self.class_logits.append(prediction.class_logits)
        self.similarities.append(torch.stack([patch_similarity(tokens) for tokens in prediction.block_tokens]))
        # Masks keep their own resolution; those of one size are scored together.
        rows_by_size: dict[tuple[int, int], list[int]] = {}
        for row, sample in enumerate(samples):
            rows_by_size.setdefault(_size(sample), []).append(row)
        for size, rows in rows_by_size.items():
            mask = torch.from_numpy(np.stack([samples[row].mask for row in rows])).to(class_labels.device)
            present = class_labels[rows]
            labels = [resize_bilinear(prediction.segmentation_logits[rows], size).argmax(1)]
            for quality, maps in ((self.cam, prediction.cams.cam), (self.aux_cam, prediction.cams.aux_cam)):
                cam = resize_bilinear(maps[rows], size)
                quality.update(mask, cam, present)
                labels.append(cam_to_label(cam, present, self.config.background_threshold))
            self.indices += [samples[row].index for row in rows]
            self.names += [samples[row].name for row in rows]
            matrices = [confusion_by_image(mask, label, self.num_classes) for label in labels]
            self.confusions.append(torch.stack(matrices, dim=1).int().cpu())

    def evaluation(self, class_names: tuple[str, ...], step: int | None, pictures: tuple[Picture, ...]) -> Evaluation:
        # Back in the order of the split, which does not depend on the batches.
        order = np.argsort(self.indices)
        matrices = torch.cat(self.confusions)[order]
        segmentation = class_scores(matrices[:, 0].sum(0))
        thresholds = self.config.thresholds()
        cams = score_cams(self.cam, self.aux_cam, thresholds, self.config.background_threshold)
        class_labels, class_logits = torch.cat(self.class_labels), torch.cat(self.class_logits)
        similarity = torch.cat(self.similarities, dim=1).double().mean(1).tolist()
        metrics = {
            "seg_miou": mean_over_classes(segmentation.iou).item(),
            "seg_pixel_accuracy": segmentation.pixel_accuracy.item(),
            "label_f1": f1_per_image(class_labels, class_logits > 0).mean().item(),
            "label_map": mean_average_precision(class_labels, class_logits),
            "patch_similarity_last": similarity[-1],
        }
        seg, cam, aux_cam = matrices.numpy().swapaxes(0, 1)
        return Evaluation(
            step=step,
            protocol=self.config.protocol(),
            metrics={f"val/{name}": value for name, value in metrics.items() if np.isfinite(value)} | cams.metrics,
            class_names=class_names,
            per_class={"seg_iou": undefined_to_none(segmentation.iou.tolist())} | cams.per_class,
            threshold_curve=cams.threshold_curve,
            patch_similarity=undefined_to_none(similarity),
            pictures=pictures,
            confusions=Confusions(
                names=tuple(self.names[i] for i in order),
                class_names=class_names,
                seg=seg,
                cam=cam,
                aux_cam=aux_cam,
                thresholds=np.array(thresholds),
                cam_histogram=self.cam.histogram.cpu().numpy(),
                aux_cam_histogram=self.aux_cam.histogram.cpu().numpy(),
            ),
        )


def _picture(
    sample: _Sample,
    class_labels: Float[Tensor, " k"],
    prediction: Prediction,
    row: int,
    pseudo_label: Integer[Tensor, "1 p q"],
) -> Picture:
    size = _size(sample)

    def strongest(cam: Tensor) -> Float[np.ndarray, "h w"]:
        shown: Float[np.ndarray, "h w"] = (
            (resize_bilinear(cam[row : row + 1], size)[0] * class_labels[:, None, None]).amax(0).cpu().numpy()
        )
        return shown

    logits = resize_bilinear(prediction.segmentation_logits[row : row + 1], size)
    return Picture(
        name=sample.name,
        class_labels=sample.class_labels,
        image=sample.image,
        cam=strongest(prediction.cams.cam),
        aux_cam=strongest(prediction.cams.aux_cam),
        pseudo_label=resize_nearest(pseudo_label, size)[0].cpu().numpy(),
        prediction=logits.argmax(1)[0].cpu().numpy(),
        mask=sample.mask,
    )
