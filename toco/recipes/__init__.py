"""Experiments, one short file each, with command, hardware, hours and expected numbers."""

ENTRY = {"recipe": "def recipe() -> RunConfig: ..."}
"""Definition that a recipe's module must have, as code."""
