"""Training methods, one file each: the network, the training step and its losses."""

from typing import TYPE_CHECKING, Any

from toco.methods._config import BilateralFilter, LabelRule, MethodConfig, Term

if TYPE_CHECKING:
    from toco.methods._method import CamMethod, Method

ENTRY = {
    "Config": "class Config(MethodConfig):\n    name: str = __name__",
    "build": (
        "def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> Method: ..."
    ),
}
"""Definitions that a method's module must have, as code."""


# PEP 562: the classes need torch, whose import takes seconds, so they are imported on first use.
def __getattr__(name: str) -> Any:  # noqa: ANN401 - an attribute of any type
    if name not in ("CamMethod", "Method"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from toco.methods import _method

    return getattr(_method, name)


__all__ = ["ENTRY", "BilateralFilter", "CamMethod", "LabelRule", "Method", "MethodConfig", "Term"]
