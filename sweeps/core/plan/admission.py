"""How many trials fit into the memory of a GPU, or of this machine.

The memory of one trial was measured by a probe or in the past.
"""

from __future__ import annotations

import psutil
import torch

from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.ray_environment import resolve_address
from sweeps.core.store.forecast_record import Forecast
from toco.room import size

MARGIN = 0.1
"""Part of the memory that stays free: other settings may need a little more than was measured."""
CONTEXT_BYTES = 600 * 10**6
"""Bytes of GPU memory that each process takes in addition to what torch reserves.

This is the CUDA context with its kernels.
"""


def refusal(foretold: Forecast, launch: Launch) -> str | None:
    """Say why the trials of ``launch`` do not fit into memory together, and how many do.

    ``None`` where they fit, where nothing was measured, and where the trials run on machines that
    cannot be asked from here.
    """
    each, launched = foretold.trial_memory_bytes, foretold.trainings + foretold.evaluations
    if each is None or resolve_address(launch.address) != "local":
        return None
    at_once = min(launch.concurrent, launched)
    if not launch.gpus_per_trial:
        total = psutil.virtual_memory().total
        fitting, where = fit(each, total), "this machine"
        advice = f"give --concurrent {fitting}" if fitting else "take one with more memory"
    elif launch.gpus_per_trial < 1 and torch.cuda.is_available():
        at_once = min(at_once, int(1 / launch.gpus_per_trial))
        total = torch.cuda.get_device_properties(0).total_memory
        fitting, where = fit(each + CONTEXT_BYTES, total), "a GPU"
        advice = (
            f"give --gpus-per-trial {1 / fitting:.3g}" if fitting else "take one with more memory"
        )
    else:
        return None
    if at_once <= fitting:
        return None
    return (
        f"{at_once} trials at once on {where} would not fit: one was measured to need {size(each)} of its "
        f"{size(total)}, so that {fitting} fit with {MARGIN:.0%} to spare; {advice}."
    )


def fit(each_bytes: int, total_bytes: int) -> int:
    """Count the trials of ``each_bytes`` that fit into ``total_bytes``, with the margin left free.

    >>> fit(each_bytes=30, total_bytes=100)
    3
    """
    return int(total_bytes * (1 - MARGIN) / each_bytes)
