"""The CAM baseline: an image classifier, its CAM, and optionally a decoder.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, on any backbone.
Pooling, CAM, pseudo labels and decoder are those of ToCo, so that the two methods differ only in
what ToCo adds. The plain classifier is the baseline of every table::

    python -m toco train shapes_nano --set method.name=cam --run-dir runs/cam

With the decoder it is the single-stage baseline::

    python -m toco train shapes_nano --set method.name=cam --run-dir runs/cam_seg \
        --set method.segmentation.weight=0.1 --set method.segmentation.start_step=80
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toco.methods._config import CamLabelsConfig, Term

if TYPE_CHECKING:
    from toco.backbones import Backbone
    from toco.methods._cam import Cam


class Config(CamLabelsConfig):
    """Settings of the baseline; the classification loss has weight 1.

    Attributes:
        segmentation: Weight and first step of the decoder's loss on the pseudo labels. With weight
            0 there is no decoder, and the run is evaluated by its CAM alone.
    """

    name: str = "cam"
    segmentation: Term = Term(weight=0.0)

    @classmethod
    def small(cls) -> Config:
        """See the base class; with a decoder, so that the contract test covers its parts."""
        return cls(segmentation=Term(weight=0.1, start_step=1), decoder_width=16)

    def has_decoder(self) -> bool:
        """Whether the decoder's loss has a weight."""
        return self.segmentation.weight > 0

    def late_step(self) -> int | None:
        """See the base class: the first step of the decoder's loss."""
        return self.segmentation.start_step or None if self.has_decoder() else None

    def inert_until(self, step: int) -> frozenset[str]:
        """The decoder's loss, before its first step: until then the decoder only decays.

        A loss without weight gives zero gradients, so weight decay is the only update of the
        decoder.
        """
        joins_later = self.has_decoder() and self.segmentation.start_step >= step
        return frozenset({"segmentation"} if joins_later else ())


def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> Cam:
    """Build the method on ``backbone``."""
    from toco.methods._cam import Cam  # imported late: naming a method needs no torch

    return Cam(config, backbone, num_foreground_classes)
