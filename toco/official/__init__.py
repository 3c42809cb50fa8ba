"""Compatibility with the official ToCo code: its checkpoints and its command lines."""
