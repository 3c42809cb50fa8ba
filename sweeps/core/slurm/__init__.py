"""Slurm: the script of an array of drivers, its submissions, and the queue."""
