"""The class activation map baseline: an image classifier, its CAM, and a decoder trained on the CAM if asked for.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, on any backbone. Pooling, CAM, pseudo
labels and decoder are those of ToCo, so that the two differ in nothing but what ToCo adds. The plain classifier is the
row of every table that other rows are compared with::

    python -m toco train shapes_nano --set method.name=cam --run-dir runs/cam

With the decoder it is the single-stage baseline: --set method.segmentation.weight=0.1
--set method.segmentation.start_step=80
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from toco.backbones import Backbone
from toco.cam.activation import activation_maps, multi_scale_cams
from toco.cam.labels import class_ids
from toco.data import denormalise_255
from toco.heads.classifier import Classifier
from toco.heads.large_fov import LargeFov
from toco.losses.classification import classification_loss
from toco.losses.segmentation import segmentation_loss
from toco.methods._cam_labels import CamLabelsConfig
from toco.methods._method import Method, Term, compile_graphs, group_parameters
from toco.types import Batch, Cams, Prediction, StepOutput, present_classes


class Config(CamLabelsConfig):
    """Settings of the baseline. The classification loss has weight 1.

    Attributes:
        segmentation: Weight and first step of the decoder's loss on the pseudo labels. Without weight there is no
            decoder, and the run is evaluated by its CAM alone.
        decoder_width: Channels between the decoder's layers.
        decoder_dilation: Dilation of its convolutions, in patches.
    """

    name: Literal["cam"] = "cam"
    segmentation: Term = Term(weight=0.0)
    decoder_width: int = Field(default=512, gt=0)
    decoder_dilation: int = Field(default=5, gt=0)

    @classmethod
    def small(cls) -> Config:
        """With a decoder, whose parts the test can then see."""
        return cls(segmentation=Term(weight=0.1, start_step=1), decoder_width=16)

    def has_decoder(self) -> bool:
        """Whether its loss has a weight."""
        return self.segmentation.weight > 0

    def late_step(self) -> int | None:
        """Where the decoder's loss joins, if it joins late."""
        return self.segmentation.start_step or None if self.has_decoder() else None

    def inert_until(self, step: int) -> frozenset[str]:
        """The decoder's loss before it joins: until then the decoder gets zero gradients and decays."""
        joins_later = self.has_decoder() and self.segmentation.start_step >= step
        return frozenset({"segmentation"} if joins_later else ())


def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> Cam:
    """The method on ``backbone``."""
    return Cam(config, backbone, num_foreground_classes)


class Cam(Method):
    """A classifier over the patches of a backbone, and a decoder if the config has one."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, num_foreground_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_foreground_classes = num_foreground_classes
        self.patch_size_px = backbone.patch_size_px
        self.backbone = backbone
        self.classifier = Classifier(backbone.width, num_foreground_classes)
        self.decoder = (
            LargeFov(backbone.width, num_foreground_classes + 1, config.decoder_width, config.decoder_dilation)
            if config.has_decoder()
            else None
        )

    def training_losses(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        """Classification, and from its first step on segmentation of the pseudo labels. It draws nothing."""
        weights = {"classification": 1.0, "segmentation": self.config.segmentation.at(step)}
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        # Outside of what is compiled: levels are cut to whole numbers, and a fused operation would round otherwise.
        levels = denormalise_255(batch.images, truncate=True) if "segmentation" in weights else None
        losses, counts = self._losses(batch.images, batch.class_labels, batch.present, batch.valid_box, levels)
        return StepOutput(losses, weights, counts)

    def compile_step(self) -> None:
        """See the base class."""
        self._losses = compile_graphs(self._losses)  # type: ignore[method-assign]

    def _losses(
        self, images: Tensor, class_labels: Tensor, present: Tensor, valid_box: Tensor, levels: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and counts; that of the decoder where there are ``levels``, the images as levels 0 to 255."""
        features = self._features(images)
        losses = {"classification": self.by_group(classification_loss, self.classifier(features), class_labels)}
        if levels is None:
            return losses, {}
        config = self.config
        cam = self._cam(images, config.cam_scales, config.cam_flip, present, features)
        label = config.label_rule().refine(levels, cam, class_labels.gather(1, present), valid_box)
        label = class_ids(label, present)
        logits = self._decode(features)
        logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        losses["segmentation"] = self.by_group(segmentation_loss, logits, label)
        is_foreground = (label > 0) & (label <= self.num_foreground_classes)
        return losses, {"pseudo_label_foreground": is_foreground.float().mean()}

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """See the base class."""
        return group_parameters(self.backbone, [self.classifier], self.decoder)

    def cams(
        self,
        images: Float[Tensor, "b 3 h w"],
        scales: Sequence[float],
        flip: bool,
        present: Int[Tensor, "b m"] | None = None,
    ) -> Cams:
        """See the base class; there is the final CAM alone."""
        return Cams(self._cam(images, scales, flip, present))

    @torch.no_grad()
    def predict(
        self,
        images: Float[Tensor, "b 3 h w"],
        scales: Sequence[float],
        flip: bool,
        present: Int[Tensor, "b m"] | None = None,
    ) -> Prediction:
        """See the base class; one pass gives everything but the rescaled and mirrored CAMs."""
        with self.autocast(images.device):
            encoded, blocks = self.backbone.forward_blocks(images)
        features = self._in_float32(encoded.features)
        return Prediction(
            cams=Cams(self._cam(images, scales, flip, present, features)),
            class_logits=self.classifier(features),
            segmentation_logits=None if self.decoder is None else self._decode(features),
            block_tokens=tuple(map(self._in_float32, blocks)),
        )

    @torch.no_grad()
    def segmentation_logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b s p q"]:
        """See the base class."""
        return self._decode(self._features(images))

    @torch.no_grad()
    def pseudo_labels(
        self,
        images: Float[Tensor, "b 3 h w"],
        class_labels: Float[Tensor, "b k"],
        valid_box: Int[Tensor, "b 4"] | None = None,
    ) -> Int[Tensor, "b h w"]:
        """See the base class."""
        config, present = self.config, present_classes(class_labels)
        cam = self._cam(images, config.cam_scales, config.cam_flip, present)
        levels = denormalise_255(images, truncate=True)
        label = config.label_rule().refine(levels, cam, class_labels.gather(1, present), valid_box)
        return class_ids(label, present)

    @torch.no_grad()
    def _cam(
        self,
        images: Tensor,
        scales: Sequence[float],
        flip: bool,
        present: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """The multi-scale CAM; ``features`` are those of ``images``, where they are there already."""

        def maps_of(features: Tensor) -> Tensor:
            # All images, and after them their mirror images, of which the same classes are wanted.
            classes = None if present is None else present.repeat(len(features) // len(present), 1)
            return activation_maps(features, self.classifier.weight, classes)

        base = None if features is None else maps_of(features)
        return multi_scale_cams(lambda scaled: maps_of(self._features(scaled)), images, scales, flip, base)

    def _features(self, images: Tensor) -> Tensor:
        with self.autocast(images.device):
            features: Tensor = self.backbone(images).features
        return self._in_float32(features)

    def _decode(self, features: Tensor) -> Tensor:
        if self.decoder is None:
            raise ValueError("The method has no decoder, since method.segmentation.weight is 0.")
        with self.autocast(features.device):
            logits: Tensor = self.decoder(features)
        return self._in_float32(logits)

    def _in_float32(self, values: Tensor) -> Tensor:
        return values.float() if self.autocast_dtype else values


__all__ = ["Cam", "Config", "Term", "build"]
