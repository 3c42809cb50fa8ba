"""Benchmarks: ``python -m benchmarks`` lists the commands, ``results/`` has their results."""
