"""Studies: sweeps that are values, run on Ray Tune, reported as tables."""
