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

from typing import TYPE_CHECKING, Any

from toco.methods._config import OptionalDecoderConfig, Term

if TYPE_CHECKING:
    from toco.backbones import Backbone
    from toco.methods._cam import Cam


class Config(OptionalDecoderConfig):
    """Settings of the baseline; the classification loss has weight 1."""

    name: str = "cam"

    @classmethod
    def small(cls) -> Config:
        """See the base class; with a decoder, so that the contract test covers its parts."""
        return cls(
            segmentation=Term(weight=0.1, start_step=1),
            energy=Term(weight=0.05, start_step=1),
            decoder_width=16,
        )


def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> Cam:
    """Build the method on ``backbone``."""
    from toco.methods._cam import Cam  # imported late: naming a method needs no torch

    return Cam(config, backbone, num_foreground_classes)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562: an attribute that needs torch
    if name != "Cam":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from toco.methods._cam import Cam

    return Cam


__all__ = ["Cam", "Config", "Term", "build"]
