"""Encoders that turn an image into a class token and patch tokens; one file each."""

from toco.backbones._backbone import Backbone, BackboneConfig
from toco.backbones._weights import load_file, read_tensors, split_entry, without_shared_prefix

__all__ = ["Backbone", "BackboneConfig", "load_file", "read_tensors", "split_entry", "without_shared_prefix"]
