"""The settings of an evaluation, without torch."""

from __future__ import annotations

from pydantic import Field

from toco.config import RUN_ONLY, Config, Positive

_OFFICIAL_SIZE_PX = 448
_OFFICIAL_SCALES = {0.5, 1.0, 1.5}


class EvaluateConfig(Config):
    """Settings of an evaluation. The defaults are the official validation on PASCAL VOC.

    Attributes:
        size_px: Every image is squashed to a square of this side; ``None`` keeps its own size.
        cam_scales: Scales whose CAMs are summed; 1.0 is always added.
        cam_flip: Take the maximum with the CAM of the mirrored image.
        background_threshold: A pixel is background where its CAM is at most this. 0.5 for VOC, 0.45
            for COCO.
        curve_stop: Last threshold of the curve, which starts at 0; rounded to a multiple of
            ``curve_step``.
        curve_step: Step between the curve's thresholds.
        max_images: Evaluate at most this many images, evenly spaced over the split; ``None`` means
            all.
        average_last: A training's result is the mean over its last ``average_last`` evaluations.
        batch_size: Images that pass the network at once.
        num_pictures: Most images to draw, evenly spaced over those evaluated.
    """

    size_px: int | None = Field(default=448, ge=16)
    cam_scales: tuple[Positive, ...] = (1.0, 0.5, 1.5)
    cam_flip: bool = True
    background_threshold: float = Field(default=0.5, ge=0, lt=1)
    curve_stop: float = Field(default=0.95, ge=0, lt=1)
    curve_step: float = Field(default=0.01, ge=0.001)
    max_images: int | None = Field(default=None, ge=1)
    average_last: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1, json_schema_extra={RUN_ONLY: True})
    num_pictures: int = Field(default=8, ge=0, json_schema_extra={RUN_ONLY: True})

    def thresholds(self) -> tuple[float, ...]:
        """Return the thresholds of the curve and the fixed threshold, ascending."""
        # Rounded, so that 0.5 equals one of 0.00, 0.01, ...; 50 * 0.01 may differ in the last bit.
        grid = (
            round(i * self.curve_step, 6)
            for i in range(round(self.curve_stop / self.curve_step) + 1)
        )
        return tuple(sorted({*grid, round(self.background_threshold, 6)}))

    def fixed_threshold_index(self) -> int:
        """Return the index of the background threshold in :meth:`thresholds`."""
        return self.thresholds().index(round(self.background_threshold, 6))

    def protocol(self) -> str:
        """Describe the protocol as text, which accompanies every number."""
        size = (
            "at their own size"
            if self.size_px is None
            else f"squashed to {self.size_px} x {self.size_px} px"
        )
        scales = ", ".join(f"{scale:g}" for scale in dict.fromkeys((1.0, *self.cam_scales)))
        official = (
            self.size_px == _OFFICIAL_SIZE_PX
            and {1.0, *self.cam_scales} == _OFFICIAL_SCALES
            and self.cam_flip
            and self.max_images is None
        )
        name = (
            "The official validation protocol of ToCo" if official else "Not the official protocol"
        )
        images = "all of the split" if self.max_images is None else f"at most {self.max_images}"
        return (
            f"{name}: images {size} (bilinear), {images}. "
            f"CAM: scales {scales} {'with' if self.cam_flip else 'without'} flip, restricted to "
            "the ground-truth image-level labels of the evaluated images, resized to the mask, "
            f"background where it is at most {self.background_threshold:g}; no PAR, no CRF. "
            "cam_best_threshold is chosen with the masks of this very split. Segmentation: one "
            "scale, no flip, no CRF. mIoU: one confusion matrix over the split, void excluded, "
            "mean over the classes in the ground truth; precision, recall, FP and FN rates over "
            "the same classes. Label F1: logits above 0, mean over images."
        )
