"""Experiments: one short file each, with the command, the hardware, the hours and the expected number."""
