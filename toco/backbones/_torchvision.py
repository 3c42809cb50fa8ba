"""Make torchvision, which timm imports, importable beside a torch without CUDA.

Every torchvision wheel on the Python package index is a CUDA build. Beside a CPU build of torch its
compiled library does not load, and the import then fails because the operators ``nms`` and ``qnms``
have no schema. This project does not call them, so declaring them is enough. Where the library
loads, nothing is declared.
"""

import sys

import torch


def make_importable() -> torch.library.Library | None:
    """Import torchvision, and declare its missing operators where necessary.

    Returns:
        The declarations, which last as long as this object does; ``None`` where none were needed.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401

        return library
    return None


OPERATORS = make_importable()
