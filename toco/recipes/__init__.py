"""Experiments: one short file each, with the command, the hardware, the hours and the expected number."""

ENTRY = {"recipe": "def recipe() -> RunConfig: ..."}
"""What a recipe's module defines, and how that is written."""
