"""Training methods, one file each: what is computed in a step, and which losses come of it."""

from toco.methods._method import Method, MethodConfig

__all__ = ["Method", "MethodConfig"]
