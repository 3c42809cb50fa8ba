"""Error, power and trainings of studies that add seeds, by simulation.

    python -m benchmarks sequential-seeds --out benchmarks/results/sequential_seeds.json

Each study goes through the code that runs and judges real ones, with values that are drawn in the
place of trainings. Their truth is known: `false` is the share of studies with any false statement
about a claim, `marked` that of studies whose table marks a difference that is none. Effects are in
standard deviations of a paired difference. Hardware: one CPU core.
"""

from __future__ import annotations

import time
from typing import Any

import click

from benchmarks._frame import benchmark
from benchmarks._simulated_studies import CASES, simulate, simulation_of


@benchmark(times=None, device=None)
@click.option(
    "--studies", default=2000, show_default=True, type=click.IntRange(2), help="Studies a case."
)
@click.option(
    "--case",
    "cases",
    multiple=True,
    type=click.Choice(list(CASES)),
    help="A case; may be repeated.  [default: all]",
)
def sequential_seeds(studies: int, cases: tuple[str, ...]) -> dict[str, Any]:
    """Simulate studies of each case."""
    rows = []
    for case in cases or CASES:
        simulation_of(case)
        started = time.process_time()
        figures = simulate(case, range(studies))
        seconds = time.process_time() - started
        row: dict[str, Any] = {"case": case}
        for figure, (mean, error) in figures.items():
            row |= {figure: mean, f"{figure}_se": error}
        rows.append(row | {"study_ms": 1000 * seconds / studies})
    return {"studies": studies, "cases": rows}
