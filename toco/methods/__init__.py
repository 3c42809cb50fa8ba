"""Training methods, one file each: what is computed in a step, and which losses come of it."""

from toco.methods._method import BilateralFilter, LabelRule, Method, MethodConfig, Term

ENTRY = {
    "Config": "class Config(MethodConfig):\n    name: str = __name__",
    "build": "def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> Method: ...",
}
"""What a method's module defines, and how that is written."""

__all__ = ["ENTRY", "BilateralFilter", "LabelRule", "Method", "MethodConfig", "Term"]
