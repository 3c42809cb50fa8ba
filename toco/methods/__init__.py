"""Training methods, one file each: what is computed in a step, and which losses come of it."""

from typing import TYPE_CHECKING, Any

from toco.methods._config import BilateralFilter, LabelRule, MethodConfig, Term

if TYPE_CHECKING:
    from toco.methods._method import CamMethod, Method

ENTRY = {
    "Config": "class Config(MethodConfig):\n    name: str = __name__",
    "build": "def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> Method: ...",
}
"""What a method's module defines, and how that is written."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562: what needs torch is imported when it is asked for
    if name not in ("CamMethod", "Method"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from toco.methods import _method

    return getattr(_method, name)


__all__ = ["ENTRY", "BilateralFilter", "CamMethod", "LabelRule", "Method", "MethodConfig", "Term"]
