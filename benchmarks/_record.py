"""Tools of all benchmarks: machine, timing, peak of matrix products, memory, JSON file."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from toco.cpu_layers import linear
from toco.files import write_text
from toco.train import step

FORMAT_VERSION = 1
RESULTS = Path(__file__).parent / "results"

_MATRIX_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
# Large enough to keep the processor's or the GPU's matrix units busy.
_PEAK_SIDE = {"cpu": 2048, "cuda": 8192}
_PEAK_TIMES = 10


def machine(device: torch.device | str) -> dict[str, Any]:
    """Describe the machine of the figures, without date and name of the host."""
    description: dict[str, Any] = {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "matrix_instructions": [
            flag for flag in _MATRIX_FLAGS if flag in _cpuinfo("flags").split()
        ],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        }
        description |= {
            "cuda": torch.version.cuda,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    return description


def write(out: Path | None, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Add command and machine to ``result``, write it to ``out``, and return it.

    Args:
        out: The file; ``None`` writes nothing.
        name: The benchmark's command.
        result: The measured figures. Their ``device``, by default the CPU, is the machine to
            describe.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "machine": machine(result.get("device", "cpu")),
    }
    if out is not None:
        write_text(out, json.dumps(header | result, indent=2) + "\n")
    return header | result


def measure(
    functions: Mapping[str, Callable[[], object]], times: int, device: torch.device | str
) -> dict[str, list[float]]:
    """Time every function ``times`` times, in seconds, after one call that is not timed.

    The functions take turns, so that other load on the machine affects all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for count in (False,) + (True,) * times:
        for name, function in functions.items():
            synchronise(device)
            started = time.perf_counter()
            function()
            synchronise(device)
            if count:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def matrix_peak(dtype: torch.dtype, device: torch.device | str) -> float:
    """Measure the FLOP/s of the fastest of several large matrix products, with torch's threads."""
    side = _PEAK_SIDE[torch.device(device).type]
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    # On a CPU both libraries of torch are tried.
    products = {"product": lambda: first @ second, "linear": lambda: linear(first, second, None)}
    seconds = measure(products, _PEAK_TIMES, device)
    return 2 * side**3 / min(min(times) for times in seconds.values())


def peak_memory_bytes(device: torch.device | str) -> int:
    """Return the most memory so far: allocated on a GPU since the last reset, or resident."""
    device = torch.device(device)
    return (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else step.peak_memory_bytes(device)
    )


def synchronise(device: torch.device | str) -> None:
    """Wait until a CUDA device has finished all its work; a CPU needs no wait."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _cpuinfo(field: str) -> str:
    """Read a field of the first processor in ``/proc/cpuinfo``; empty where it is missing."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
