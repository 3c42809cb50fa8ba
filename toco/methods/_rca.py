"""The network of :mod:`toco.methods.rca` and its training step."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from toco.backbones import Backbone
from toco.heads.class_maps import ConvMaps
from toco.heads.classifier import Classifier
from toco.losses.classification import classification_loss
from toco.methods._cam_heads import CamHead
from toco.methods._method import compile_graphs, group_parameters
from toco.methods._rca_parts import Draws, fused_width
from toco.methods._rca_parts_method import Outcome, RcaPartsMethod
from toco.methods.rca import Config
from toco.tensors import Batch, StepOutput


class Rca(RcaPartsMethod):
    """The network of RCA and its training step.

    Attributes:
        coarse: Head of the coarse maps, on the features before the aggregation.
    """

    config: Config
    coarse: CamHead

    def __init__(self, config: Config, backbone: Backbone, num_foreground_classes: int) -> None:
        width = backbone.width
        aux_width = width if config.aux_block is None else backbone.aux_width(config.aux_block)
        fused = fused_width(config.aggregation, width)
        super().__init__(
            config,
            backbone,
            num_foreground_classes,
            _build_head(config, fused, num_foreground_classes, private=True),
        )
        self.aux_block = config.aux_block
        self.coarse = _build_head(config, aux_width, num_foreground_classes, private=False)
        self.rca_parts = self.build_rca_parts(aux_width)
        self.decoder = self.build_decoder() if config.has_decoder() else None

    def cam_heads(self) -> dict[str, CamHead]:
        """See the base class; the coarse head makes ``aux_cam``."""
        return {**super().cam_heads(), "aux_cam": self.coarse}

    def training_losses(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        """Compute the losses of one step, then update the memory.

        The memory is clustered before the losses, if that is due. The losses see the memory before
        the step's update.

        Source: official RCA code, the training script and the network's forward pass.
        """
        config = self.config
        weights = {
            "classification": 1.0,
            "coarse_classification": config.coarse_weight,
            "region_contrast": config.region_contrast.at(step),
            **self.decoder_weights(step),
        }
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        draws = None
        if self.rca_parts is not None:
            draws = self.rca_parts.begin_step(batch, step, generator, "region_contrast" in weights)
        outcome = self._outcome(
            batch.images,
            batch.class_labels,
            batch.present,
            batch.valid_box,
            draws,
            self.levels_of(batch.images, weights),
            terms=frozenset(weights),
        )
        return self.finish_step(batch, outcome, weights)

    def compile_step(self) -> None:
        """See the base class. Clustering, update of the memory and energy stay outside."""
        self._outcome = compile_graphs(self._outcome)  # type: ignore[method-assign]

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """See the base class; ``aggregation.rate`` names the group of the aggregation."""
        groups = group_parameters(self.backbone, [self.classifier, self.coarse], self.decoder)
        return groups if self.rca_parts is None else self.rca_parts.join(groups)

    def _outcome(
        self,
        images: Tensor,
        class_labels: Tensor,
        present: Tensor,
        valid_box: Tensor,
        draws: Draws | None,
        levels: Tensor | None,
        *,
        terms: Collection[str],
    ) -> Outcome:
        """Compute all losses in ``terms`` but the energy.

        The function reads no value of a tensor, so that it can be compiled.

        Args:
            images: See :class:`toco.tensors.Batch` for this and the three that follow.
            class_labels: Image-level labels.
            present: Classes of each image.
            valid_box: Image area.
            draws: Random numbers of the contrast; ``None`` at steps without it.
            levels: ``images`` as whole levels 0 to 255; ``None`` at steps where the decoder does
                not learn.
            terms: Losses with a weight at this step.
        """
        config, size_px = self.config, (images.shape[2], images.shape[3])
        features = self.encode(images)
        outputs = self.head_outputs(features, self.cam_heads())
        class_logits = outputs["cam"].logits()
        losses = {"classification": self.by_group(classification_loss, class_logits, class_labels)}
        if "coarse_classification" in terms:
            losses["coarse_classification"] = self.by_group(
                classification_loss, outputs["aux_cam"].logits(), class_labels
            )
        of_regions, update, counts = self.contrast_regions(
            features, outputs, class_logits, size_px, class_labels, present, valid_box, draws
        )
        losses |= of_regions
        if levels is None:
            return Outcome(losses, counts, None, update)
        cams = self.cam_maps(images, config.cam_scales, config.cam_flip, ("cam",), present, outputs)
        decoder = self.decoder_output(
            features.features, cams["cam"], levels, class_labels, present, valid_box, terms
        )
        return Outcome(losses | decoder.losses, counts | decoder.counts, decoder, update)


def _build_head(
    config: Config, in_channels: int, num_foreground_classes: int, *, private: bool
) -> CamHead:
    if config.class_maps == "linear":
        return Classifier(in_channels, num_foreground_classes, config.pooling)
    return ConvMaps(in_channels, num_foreground_classes, private, config.pooling)
