"""Swin transformers of timm, which have NO CLASS TOKEN.

CTC contrasts pooled tokens instead. This is an addition to the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from toco.backbones._config import StochasticDepthConfig, TimmConfig, weights_path

if TYPE_CHECKING:
    from toco.backbones._swin import Swin


class Config(TimmConfig, StochasticDepthConfig):
    """Settings of a Swin transformer of timm.

    Attributes:
        class_token: ``pooled`` is the mean of the final patch tokens after the norm, on which
            Swin's classifier was pretrained. Class token contrast uses it, because Swin has no
            class token. This is not in the paper. The setting has one value, and exists so that
            every record of a run says so.
    """

    name: str = "swin"
    model: str = "swin_tiny_patch4_window7_224.ms_in1k"
    class_token: Literal["pooled"] = "pooled"  # noqa: S105 - not a password


def build(config: Config) -> Swin:
    """Build the backbone that ``config`` describes.

    Raises:
        ValueError: timm has no such model, it is no Swin transformer, or the weights do not fit.
    """
    # Imported late: naming a backbone needs no torch.
    from toco.backbones._swin import Swin
    from toco.backbones._timm import build as build_timm

    # Images of any size, with windows as large as in the pretraining.
    return build_timm(
        config,
        "Swin",
        Swin,
        strict_img_size=False,
        always_partition=True,
        drop_path_rate=config.drop_path,
    )


__all__ = ["Config", "build", "weights_path"]
