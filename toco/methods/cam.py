"""The class activation map baseline: an image classifier, its CAM, and a decoder trained on the CAM if asked for.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, on any backbone. Pooling, CAM, pseudo
labels and decoder are those of ToCo, so that the two differ in nothing but what ToCo adds. The plain classifier is the
row of every table that other rows are compared with::

    python -m toco train shapes_nano --set method.name=cam --run-dir runs/cam

With the decoder it is the single-stage baseline: --set method.segmentation.weight=0.1
--set method.segmentation.start_step=80
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toco.methods._config import CamLabelsConfig, Term

if TYPE_CHECKING:
    from toco.backbones import Backbone
    from toco.methods._cam import Cam


class Config(CamLabelsConfig):
    """Settings of the baseline. The classification loss has weight 1.

    Attributes:
        segmentation: Weight and first step of the decoder's loss on the pseudo labels. Without
            weight there is no decoder, and the run is evaluated by its CAM alone.
    """

    name: str = "cam"
    segmentation: Term = Term(weight=0.0)

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
    from toco.methods._cam import Cam  # here, as what only names a method needs no torch

    return Cam(config, backbone, num_foreground_classes)
