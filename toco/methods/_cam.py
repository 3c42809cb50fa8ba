"""The network of :mod:`toco.methods.cam` and its training step."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from toco.backbones import Backbone
from toco.losses.classification import classification_loss
from toco.methods._method import CamMethod, DecoderOutput, compile_graphs, group_parameters
from toco.methods.cam import Config
from toco.tensors import Batch, Features, StepOutput


class Cam(CamMethod):
    """A classifier over patch tokens, and a decoder if the config asks for one.

    A subclass adds losses with :meth:`further_weights` and :meth:`further_losses`.
    """

    config: Config

    def __init__(self, config: Config, backbone: Backbone, num_foreground_classes: int) -> None:
        super().__init__(config, backbone, num_foreground_classes)
        self.decoder = self.build_decoder() if config.has_decoder() else None

    def training_losses(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        """Compute the classification loss and, from their first steps on, the decoder's losses.

        The decoder learns from pseudo labels. The step draws no random numbers.
        """
        weights = {
            "classification": 1.0,
            **self.further_weights(step),
            **self.decoder_weights(step),
        }
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        losses, output = self._losses(
            batch.images,
            batch.class_labels,
            batch.present,
            batch.valid_box,
            self.levels_of(batch.images, weights),
            terms=frozenset(weights),
        )
        if output is None:
            return StepOutput(losses, weights)
        losses |= output.losses
        if "energy" in weights:
            losses["energy"] = self.energy(batch, output)
        return StepOutput(losses, weights, output.counts)

    def further_weights(self, step: int) -> dict[str, float]:
        """Weights of a subclass's own losses at ``step`` (0-based), by name."""
        return {}

    def further_losses(
        self, features: Features, class_labels: Tensor, terms: Collection[str]
    ) -> dict[str, Tensor]:
        """Compute a subclass's own losses, without their weights: a scalar for each name.

        Args:
            features: Tokens of the backbone, with gradients.
            class_labels: Labels of the images.
            terms: Losses with a weight at this step; no other may be in the result.
        """
        return {}

    def compile_step(self) -> None:
        """See the base class. All but the energy becomes one graph for each phase."""
        self._losses = compile_graphs(self._losses)  # type: ignore[method-assign]

    def _losses(
        self,
        images: Tensor,
        class_labels: Tensor,
        present: Tensor,
        valid_box: Tensor,
        levels: Tensor | None,
        *,
        terms: Collection[str],
    ) -> tuple[dict[str, Tensor], DecoderOutput | None]:
        """Compute the losses in ``terms`` but the energy; the decoder's where there are levels."""
        features = self.encode(images)
        outputs = self.head_outputs(features, ("cam",))
        losses = {
            "classification": self.by_group(
                classification_loss, outputs["cam"].logits(), class_labels
            )
        }
        losses |= self.further_losses(features, class_labels, terms)
        if levels is None:
            return losses, None
        config = self.config
        cams = self.cam_maps(images, config.cam_scales, config.cam_flip, ("cam",), present, outputs)
        return losses, self.decoder_output(
            features.features, cams["cam"], levels, class_labels, present, valid_box, terms
        )

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """See the base class."""
        return group_parameters(self.backbone, [self.classifier], self.decoder)
