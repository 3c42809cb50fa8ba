"""Base of the methods that may have RCA's parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from toco.methods._cam_heads import HeadOutput
from toco.methods._method import CamMethod, DecoderOutput
from toco.methods._rca_parts import Draws, RcaParts, Update
from toco.methods._rca_parts_config import RcaPartsConfig
from toco.tensors import Batch, Features, StepOutput


class Outcome(NamedTuple):
    """Results of a step's compiled part.

    Attributes:
        losses: All losses but the energy.
        counts: Numbers to log.
        decoder: Output of the decoder; ``None`` at steps at which it does not learn.
        update: What the regions write to the memory; ``None`` without a memory.
    """

    losses: dict[str, Tensor]
    counts: dict[str, Tensor]
    decoder: DecoderOutput | None
    update: Update | None


class RcaPartsMethod(CamMethod):
    """A method whose regions are those of the maps of ``aux_cam``.

    Attributes:
        rca_parts: Memory, embedding and aggregation; ``None`` where the config needs none.
    """

    config: RcaPartsConfig
    rca_parts: RcaParts | None

    def build_rca_parts(self, aux_width: int) -> RcaParts | None:
        """Build RCA's parts with new weights, as the config asks for them."""
        config = self.config
        if not config.has_memory():
            return None
        return RcaParts(
            config.region_contrast,
            config.region_memory,
            config.aggregation,
            self.backbone.width,
            aux_width,
            self.num_foreground_classes,
        )

    def head_input(self, name: str, features: Features) -> Tensor:
        """See the base class; the aggregation changes what the final head gets."""
        tokens = super().head_input(name, features)
        if self.rca_parts is None or name != "cam":
            return tokens
        with self.autocast(tokens.device):
            fused = self.rca_parts.fuse(tokens)
        return fused.float() if self.autocast_dtype else fused

    def contrast_regions(
        self,
        features: Features,
        outputs: Mapping[str, HeadOutput],
        class_logits: Tensor,
        size_px: tuple[int, int],
        class_labels: Tensor,
        present: Tensor,
        valid_box: Tensor,
        draws: Draws | None,
    ) -> tuple[dict[str, Tensor], Update | None, dict[str, Tensor]]:
        """Compute the region contrast, the update of the memory, and numbers to log.

        The loss is missing at steps without ``draws``, the update without a memory. The arguments
        are those of :meth:`RcaParts.contrast`.
        """
        if self.rca_parts is None:
            return {}, None, {}
        loss, update, counts = self.rca_parts.contrast(
            features.features,
            features.aux_features,
            outputs["aux_cam"].maps(),
            class_logits,
            size_px,
            class_labels,
            present,
            valid_box,
            draws,
            self.group_size(len(class_labels)),
            self.autocast(class_labels.device),
        )
        return ({} if loss is None else {"region_contrast": loss}), update, counts

    def finish_step(self, batch: Batch, outcome: Outcome, weights: dict[str, float]) -> StepOutput:
        """Do what no compiled graph contains: compute the energy, and update the memory."""
        losses = outcome.losses
        if outcome.decoder is not None and "energy" in weights:
            losses["energy"] = self.energy(batch, outcome.decoder)
        if self.rca_parts is not None and outcome.update is not None:
            self.rca_parts.update_(outcome.update)
        return StepOutput(losses, weights, outcome.counts)
