"""Encoders that turn an image into a class token and patch tokens, one file each."""

from typing import TYPE_CHECKING, Any

from toco.backbones._config import BackboneConfig, Dimensions, split_entry

if TYPE_CHECKING:
    from toco.backbones._backbone import Backbone
    from toco.backbones._stochastic_depth import StochasticDepth, drawing, stochastic_depths
    from toco.backbones._weights import load_file, read_tensors, without_shared_prefix

ENTRY = {
    "Config": "class Config(BackboneConfig):\n    name: str = __name__",
    "build": "def build(config: Config) -> Backbone: ...",
    "weights_path": "def weights_path(config: Config) -> Path | None: ...",
}
"""Definitions that a backbone's module must have, as code."""


_OF_STOCHASTIC_DEPTH = ("StochasticDepth", "drawing", "stochastic_depths")
_OF_WEIGHTS = ("load_file", "read_tensors", "without_shared_prefix")


# PEP 562: these names need torch, whose import takes seconds, so they are imported on first use.
def __getattr__(name: str) -> Any:  # noqa: ANN401 - an attribute of any type
    if name not in ("Backbone", *_OF_STOCHASTIC_DEPTH, *_OF_WEIGHTS):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from toco.backbones import _backbone, _stochastic_depth, _weights

    if name in _OF_STOCHASTIC_DEPTH:
        return getattr(_stochastic_depth, name)
    return getattr(_weights if name in _OF_WEIGHTS else _backbone, name)


__all__ = [
    "ENTRY",
    "Backbone",
    "BackboneConfig",
    "Dimensions",
    "StochasticDepth",
    "drawing",
    "load_file",
    "read_tensors",
    "split_entry",
    "stochastic_depths",
    "without_shared_prefix",
]
