"""Token Contrast (ToCo) for weakly-supervised semantic segmentation: one run, from images with labels to metrics."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Only when it is asked for: this import takes longer than all that a command needs to be told
    # to stop.
    from importlib.metadata import version

    # Not a literal: the code of this file is part of what results depend on, and a release changes
    # no result.
    return version("toco")
