"""Token Contrast (ToCo) for weakly-supervised semantic segmentation: one run, from images with labels to metrics."""

__version__ = "0.1.0"
