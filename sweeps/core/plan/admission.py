"""Check that trials which run at once fit into the memory of a GPU, or of this machine.

The memory of a trial is the peak that a probe measured, or an earlier trial of the ledger.
"""

from __future__ import annotations

import math

import psutil
import torch

from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.ray_environment import resolve_address
from sweeps.core.store.forecast_record import Forecast
from toco.room import size

MARGIN = 0.1
"""Part of the memory that stays free.

The measured trial stands for all trials of a study, and some settings need more. A tenth is a
choice, not a measurement.
"""
CONTEXT_BYTES = 600 * 10**6
"""Bytes of GPU memory that each process takes in addition to what torch reserves.

The CUDA context and the loaded kernels take about half a gigabyte, which torch does not count. The
number depends on GPU and driver, so it is rounded up.
"""


def refusal(predicted: Forecast, launch: Launch) -> str | None:
    """Say why the trials of ``launch`` do not fit into memory together, and how many do.

    ``None`` where they fit, and where this cannot be checked: nothing was measured, the trials run
    on a cluster, or they ask for parts of a GPU and this machine has none. ``None`` also where each
    trial has whole GPUs, since the memory of a trial was measured alone on its GPUs.
    """
    each, launched = predicted.trial_memory_bytes, predicted.trainings + predicted.evaluations
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
            f"give --gpus-per-trial {gpus_per_trial(fitting):g}"
            if fitting
            else "take one with more memory"
        )
    else:
        return None
    if at_once <= fitting:
        return None
    return (
        f"{at_once} trials at once on {where} would not fit: one was measured to need {size(each)} "
        f"of its {size(total)}, so that {fitting} fit with {MARGIN:.0%} to spare; {advice}."
    )


def gpus_per_trial(at_once: int) -> float:
    """Return the part of a GPU with which exactly ``at_once`` trials share one.

    It is rounded down, to three decimals or more: 0.167 for six trials would leave room for five.

    >>> gpus_per_trial(6)
    0.166
    """
    scale = 1000
    while True:
        part = math.floor(scale / at_once) / scale
        if part and int(1 / part) <= at_once:
            return part
        scale *= 10


def fit(each_bytes: int, total_bytes: int) -> int:
    """Count the trials of ``each_bytes`` that fit into ``total_bytes``, with the margin left free.

    >>> fit(each_bytes=30, total_bytes=100)
    3
    """
    return int(total_bytes * (1 - MARGIN) / each_bytes)
