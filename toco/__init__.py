"""Token Contrast (ToCo) for weakly-supervised semantic segmentation: single runs."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Only on demand: this import takes longer than a command may need to react to Ctrl-C.
    from importlib.metadata import version

    # Not a literal: digests of code contain this file, and a release must not change them.
    return version("toco")
