"""Encoders that turn an image into a class token and patch tokens; one file each."""

from toco.backbones._backbone import Backbone, BackboneConfig
from toco.backbones._weights import load_file, read_tensors, split_entry, without_shared_prefix

ENTRY = {
    "Config": "class Config(BackboneConfig):\n    name: str = __name__",
    "build": "def build(config: Config) -> Backbone: ...",
    "weights_path": "def weights_path(config: Config) -> Path | None: ...",
}
"""What a backbone's module defines, and how that is written."""

__all__ = ["ENTRY", "Backbone", "BackboneConfig", "load_file", "read_tensors", "split_entry", "without_shared_prefix"]
