"""Time of a training step by phase."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch

from benchmarks._record import synchronise
from benchmarks._steps import PlainStep
from toco.methods import toco
from toco.train.step import TrainingStep

PHASES = {
    "CAM passes": ("multi_scale_cams",),
    "regions, crops": ("regions", "draw_keys", "sample_crop_corners", "crop", "positive_crops"),
    "CTC": ("ema_update_", "class_token_contrast_loss"),
    "PTC": ("cam_to_pseudo_label", "affinity", "patch_token_contrast_loss"),
    "PAR": ("refine_pseudo_label",),
    "segmentation": ("segmentation_loss",),
    "energy": ("dense_energy_loss",),
    "backward": ("backward",),
    "optimizer": ("update",),
}
"""Functions of each phase of our step: its methods, and functions in the modules of the method."""

PLAIN_PHASES = {
    "CAM passes": ("cams",),
    "regions, crops": ("regions", "crops"),
    "CTC": ("ema_update_", "class_token_contrast_loss"),
    "PTC": ("cam_to_pseudo_label", "affinity", "patch_token_contrast_loss"),
    "PAR": ("pseudo_label",),
    "segmentation": ("segmentation_loss",),
    "energy": ("dense_energy_loss",),
    "backward": ("backward",),
    "optimizer": ("update",),
}
"""Functions of each phase of the plain step: its methods, and functions in its module."""


class Phases:
    """Seconds by phase; time in nested phases counts for the outermost one."""

    def __init__(self, device: torch.device | str) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._inside = False

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block to the phase ``name``."""
        if self._inside:
            yield
            return
        self._inside = True
        synchronise(self._device)
        started = perf_counter()
        try:
            yield
        finally:
            synchronise(self._device)
            self.seconds[name] += perf_counter() - started
            self._inside = False

    @contextmanager
    def of(self, step: TrainingStep | PlainStep, method: toco.ToCo) -> Iterator[None]:
        """Time the phases of the updates that ``step`` makes in the block.

        Args:
            step: The step.
            method: The method of ``step``.
        """
        local = method.config.local_crop_size_px

        def timed(phase: str | None, function: Callable[..., Any]) -> Callable[..., Any]:
            """Wrap ``function`` as part of ``phase``; ``None``: of local crops or global views.

            The size of the images tells local crops from global views.
            """

            @wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any function
                with self(
                    phase or ("local crops" if args[0].shape[-1] == local else "global views")
                ):
                    return function(*args, **kwargs)

            return call

        is_plain = isinstance(step, PlainStep)
        phases, classes = (PLAIN_PHASES, (PlainStep,)) if is_plain else (PHASES, toco.ToCo.__mro__)
        sources = [step, *(sys.modules[part.__module__] for part in classes)]

        def source_of(function: str) -> Any:  # noqa: ANN401 - the step or a module
            return next(source for source in sources if hasattr(source, function))

        parts: list[tuple[Any, str, str | None]] = [
            (method.projection, "forward", "CTC"),
            (method.teacher, "forward", "CTC"),
            (method.decoder, "forward", "segmentation"),
            (method.backbone, "forward", None),
            (method.backbone, "forward_blocks", None),
            *(
                (source_of(name), name, phase)
                for phase, functions in phases.items()
                for name in functions
            ),
        ]
        with ExitStack() as stack:
            for owner, name, phase in parts:
                stack.enter_context(patch.object(owner, name, timed(phase, getattr(owner, name))))
            yield
