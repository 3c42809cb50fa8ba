"""Where the time of a training step goes, by phase."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks._record import synchronise
from toco.methods import LabelRule, toco
from toco.train.step import TrainingStep

PHASES = {
    "CAM passes": ("multi_scale_cams",),
    "regions, crops": ("regions", "draw_keys", "sample_crop_corners", "crop", "positive_crops"),
    "CTC": ("ema_update_", "class_token_contrast_loss"),
    "PTC": ("cam_to_pseudo_label", "affinity", "patch_token_contrast_loss"),
    "segmentation": ("segmentation_loss",),
    "energy": ("dense_energy_loss",),
}
"""The functions of ``toco.methods.toco`` whose time makes up a phase of our step."""

Phase = Callable[[str], AbstractContextManager[None]]


def untimed(_name: str) -> AbstractContextManager[None]:
    """No phase is timed."""
    return nullcontext()


class Phases:
    """Seconds by phase. What happens inside a phase belongs to the outermost one."""

    def __init__(self, device: torch.device | str) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._inside = False

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the phase ``name``."""
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
    def of(self, step: TrainingStep, method: toco.ToCo) -> Iterator[None]:
        """Time the parts of the updates that ``step`` does with ``method``."""
        local = method.config.local_crop_size_px

        def timed(name: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any function
                with self(name(*args)):
                    return function(*args, **kwargs)

            return call

        def pass_of(images: Tensor, *_: object) -> str:
            return "local crops" if images.shape[-1] == local else "global views"

        modules = {method.projection: "CTC", method.teacher: "CTC", method.decoder: "segmentation"}
        stages = {"backward": "backward", "update": "optimizer"}
        with ExitStack() as stack:
            for name, phase in stages.items():
                wrapped = timed(lambda *_, phase=phase: phase, getattr(step, name))
                stack.enter_context(patch.object(step, name, wrapped))
            for phase, functions in PHASES.items():
                for name in functions:
                    wrapped = timed(lambda *_, phase=phase: phase, getattr(toco, name))
                    stack.enter_context(patch.object(toco, name, wrapped))
            refine = timed(lambda *_: "PAR", LabelRule.refine)
            stack.enter_context(patch.object(LabelRule, "refine", refine))
            for module, phase in modules.items():
                wrapped = timed(lambda *_, phase=phase: phase, module.forward)
                stack.enter_context(patch.object(module, "forward", wrapped))
            stack.enter_context(patch.object(method.backbone, "forward", timed(pass_of, method.backbone.forward)))
            yield
