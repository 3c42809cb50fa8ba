"""The network of :mod:`toco.methods.cam` and its training step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from toco.backbones import Backbone
from toco.data.views.normalise import denormalise_255
from toco.losses.classification import classification_loss
from toco.losses.segmentation import segmentation_loss
from toco.methods._method import CamMethod, compile_graphs, group_parameters
from toco.methods.cam import Config
from toco.tensors import Batch, StepOutput


class Cam(CamMethod):
    """A classifier over patch tokens, and a decoder if the config asks for one."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, num_foreground_classes: int) -> None:
        super().__init__(config, backbone, num_foreground_classes)
        self.decoder = self.build_decoder() if config.has_decoder() else None

    def training_losses(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        """Compute the classification loss and, from its first step on, the segmentation loss.

        The decoder learns from pseudo labels. The step draws no random numbers.
        """
        weights = {"classification": 1.0, "segmentation": self.config.segmentation.at(step)}
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        # Computed outside the compiled graph: the levels are truncated to whole numbers, and a
        # fused operation would round differently.
        levels = denormalise_255(batch.images, truncate=True) if "segmentation" in weights else None
        losses, counts = self._losses(
            batch.images, batch.class_labels, batch.present, batch.valid_box, levels
        )
        return StepOutput(losses, weights, counts)

    def compile_step(self) -> None:
        """See the base class."""
        self._losses = compile_graphs(self._losses)  # type: ignore[method-assign]

    def _losses(
        self,
        images: Tensor,
        class_labels: Tensor,
        present: Tensor,
        valid_box: Tensor,
        levels: Tensor | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute losses and counts; the decoder's where ``levels`` are given.

        ``levels`` are the images as levels 0 to 255, or ``None`` at steps without the decoder's
        loss.
        """
        features = self.encode(images)
        losses = {
            "classification": self.by_group(
                classification_loss, self.classifier(features.features), class_labels
            )
        }
        if levels is None:
            return losses, {}
        cams = self.cam_maps(
            images, self.config.cam_scales, self.config.cam_flip, ("cam",), present, features
        )
        label = self.label_of(
            cams["cam"], levels, class_labels.gather(1, present), present, valid_box
        )
        logits = self.decode(features.features)
        logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        losses["segmentation"] = self.by_group(segmentation_loss, logits, label)
        return losses, {"pseudo_label_foreground": self.foreground_fraction(label)}

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """See the base class."""
        return group_parameters(self.backbone, [self.classifier], self.decoder)
