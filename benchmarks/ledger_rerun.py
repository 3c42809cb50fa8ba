"""Time the command of a finished study of 10,000 trials, which has nothing to run.

    python -m benchmarks ledger-rerun --out benchmarks/results/ledger_rerun.json

The benchmark fills a ledger with invented results, and runs the study's command a few times in new
processes. Hardware: one CPU core and 300 MB of disk. ``--storage`` keeps the ledger for the next
benchmark.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks._frame import benchmark
from benchmarks._invented import fill

LIMIT_S = 5.0
"""Goal for the command."""


@benchmark(times=5, device=None)
@click.option("--trials", default=10_000, show_default=True, type=click.IntRange(20))
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--storage",
    type=click.Path(path_type=Path),
    help="Folder of the ledger. [default: a temporary one]",
)
def ledger_rerun(trials: int, seeds: int, times: int, storage: Path | None) -> dict[str, Any]:
    """Fill the ledger, and time the command."""
    with tempfile.TemporaryDirectory(prefix="toco-ledger-rerun-") as scratch:
        file, storage = (
            Path(scratch, "ledger_rerun.py"),
            (storage or Path(scratch, "storage")).resolve(),
        )
        started = time.perf_counter()
        number = len(fill(file, storage, trials, seeds).keys)
        filled_s = time.perf_counter() - started
        times_s = [rerun(file, storage) for _ in range(times)]
    return {
        "trials": number,
        "cells": number // seeds,
        "seeds": seeds,
        "filled_s": round(filled_s, 1),
        "reruns_s": [round(seconds, 2) for seconds in times_s],
        "median_s": round(statistics.median(times_s), 2),
        "limit_s": LIMIT_S,
    }


def rerun(file: Path, storage: Path) -> float:
    """Time the study's command in a new process, in seconds.

    Raises:
        RuntimeError: The command failed, or made a run folder, so a trial was missing.
    """
    started = time.perf_counter()
    completed = subprocess.run(  # noqa: S603 - this interpreter, the file written here
        [sys.executable, str(file), "run", "--storage", str(storage)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if completed.returncode or (storage / "runs").exists():
        raise RuntimeError(
            f"The command of a finished study exited with {completed.returncode}: "
            f"{completed.stderr[-2000:]}"
        )
    return seconds
