"""Studies: sweeps that are values, run on Ray Tune, reported as tables."""

from toco import interrupts

interrupts.take_in_script(__file__)  # python sweeps/NAME.py: before the imports of the study, which take their time
