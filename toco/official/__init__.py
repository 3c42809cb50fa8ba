"""Compatibility with the official ToCo code: checkpoints, command lines and results."""
