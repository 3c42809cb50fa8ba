"""Swin transformers of timm. They have NO CLASS TOKEN: CTC contrasts pooled tokens instead (ours, not the paper's)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from toco.backbones._config import TimmConfig, weights_path

if TYPE_CHECKING:
    from toco.backbones._swin import Swin


class Config(TimmConfig):
    """A Swin transformer of timm.

    Attributes:
        class_token: Swin has none. ``pooled`` is the mean of the final patch tokens after the norm,
            which is what its classifier was pretrained on; class token contrast takes it instead.
            This is not in the paper: it stands here so that every record of a run says so, and
            there is no other choice.
    """

    name: str = "swin"
    model: str = "swin_tiny_patch4_window7_224.ms_in1k"
    class_token: Literal["pooled"] = "pooled"  # noqa: S105 - not a password


def build(config: Config) -> Swin:
    """The backbone that ``config`` describes.

    Raises:
        ValueError: timm has no such model, it is no Swin transformer, or the weights do not fit.
    """
    # Here, as what only names a backbone needs no torch.
    from toco.backbones._swin import Swin
    from toco.backbones._timm import build as build_timm

    # Any size, and windows that stay as large as they were pretrained. Without stochastic depth,
    # timm's default here: it would draw from the global random state, and the ViTs have none.
    options = {"strict_img_size": False, "always_partition": True, "drop_path_rate": 0.0}
    return build_timm(config, "Swin", Swin, **options)


__all__ = ["Config", "build", "weights_path"]
