"""Training methods, one file each: what is computed in a step, and which losses come of it."""

from toco.methods._method import BilateralFilter, Method, MethodConfig, Term

__all__ = ["BilateralFilter", "Method", "MethodConfig", "Term"]
