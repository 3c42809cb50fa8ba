"""Studies: values that Ray Tune runs and that are reported as tables."""

from toco import interrupts

ENTRY = {
    "STUDY": "STUDY = Study(name=..., title=..., recipe=..., design=..., seeds=..., metrics=...)",
    "main": 'main = study_command(STUDY, __doc__)\nif __name__ == "__main__":\n    main()',
}
"""What a module must define to be a study, and an example of each definition."""

# python sweeps/NAME.py: signals are taken before the imports of the study, which take seconds.
interrupts.install_handlers_in_script(__file__)
