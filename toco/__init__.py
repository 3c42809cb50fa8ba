"""Token Contrast (ToCo) for weakly-supervised semantic segmentation: one run, from images with labels to metrics."""

from importlib.metadata import version

# Not a literal: the code of this file is part of what results depend on, and a release changes no result.
__version__ = version("toco")
