"""Encoders that turn an image into a class token and patch tokens; one file each."""

from toco.backbones._backbone import Backbone, BackboneConfig

__all__ = ["Backbone", "BackboneConfig"]
