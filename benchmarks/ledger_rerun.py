"""How long the command of a finished study of 10,000 trials takes, when there is nothing left to run.

    python -m benchmarks ledger-rerun --out benchmarks/results/ledger_rerun.json

Fills a ledger with invented results and runs the study's own command a few times in new processes. Hardware: one CPU
core and 300 MB of disk. Filling takes a few minutes, as every entry is synced; ``--storage`` keeps the ledger for the
next time.
"""

from __future__ import annotations

import os
import random
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks._record import out_option, write
from sweeps.core.design.study import Study
from sweeps.core.plan.survey import survey
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.ledger_entry import LedgerEntry, Origin, Resources

LIMIT_S = 5.0
STUDY_FILE = '''"""A study of {cells} cells, made up to time its command."""

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study

STUDY = Study(
    name="ledger_rerun",
    title="A finished study of {cells} cells",
    recipe="shapes_nano",
    # The base runs once more with other seeds, which makes the last cell.
    design=OneFactor((Factor("method.temperature", tuple(0.1 + number / 10_000 for number in range({cells} - 1))),)),
    seeds=tuple(range({seeds})),
    metrics=(Metric("val/cam_miou", "M"), Metric("val/aux_cam_miou", "M_m"), Metric("val/seg_miou", "seg")),
    purpose="direction",
)
main = study_command(STUDY, __doc__)

if __name__ == "__main__":
    main()
'''


def fill(study: Study, storage: Path) -> int:
    """Enter an invented result for every trial that has none; returns the number of trials."""
    situation = survey(study, storage)
    ledger = Ledger(storage)
    there = ledger.finished_keys(situation.keys)
    for trial, identity in zip(situation.plan.trials, situation.identities, strict=True):
        if identity.key in there:
            continue
        noise = random.Random(identity.key)  # noqa: S311 - no secret
        config = trial.config.resolved()
        ledger.write(
            LedgerEntry(
                key=identity.key,
                training_key=identity.training_key,
                status="finished",
                step=config.num_steps,
                attempts=0,
                message=None,
                identity=identity.parts,
                config=config.model_dump(mode="json"),
                metrics={metric.key: 0.5 + noise.gauss(0, 0.02) for metric in study.metrics},
                wall_time_s=60.0,
                step_time_s=0.3,
                peak_memory_bytes=800_000_000,
                provenance={"commit": None, "dirty": None, "device": "CPU", "versions": {}, "platform": ""},
                resources=Resources(1.0, 0.0),
                origin=Origin(study.name, study.recipe),
                run=f"runs/{identity.key}",
            )
        )
    return len(situation.keys)


def rerun(file: Path, storage: Path) -> float:
    """Seconds of the command, as a person waits for it.

    Raises:
        RuntimeError: It failed, or would have trained something.
    """
    started = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - this interpreter, the file written here
        [sys.executable, str(file), "run", "--storage", str(storage)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    took_s = time.perf_counter() - started
    if done.returncode or (storage / "runs").exists():
        raise RuntimeError(f"The command of a finished study exited with {done.returncode}: {done.stderr[-2000:]}")
    return took_s


@click.command("ledger-rerun", help=__doc__)
@click.option("--trials", default=10_000, show_default=True, type=click.IntRange(20))
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--times", default=5, show_default=True, type=click.IntRange(1), help="Runs of the command.")
@click.option("--storage", type=click.Path(path_type=Path), help="Folder of the ledger. [default: a temporary one]")
@out_option
def ledger_rerun(trials: int, seeds: int, times: int, storage: Path | None, out: Path | None) -> None:
    """Fill, run, write."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toco-ledger-rerun-")))
        storage = (storage or scratch / "storage").resolve()
        file = scratch / "ledger_rerun.py"
        file.write_text(STUDY_FILE.format(cells=trials // seeds, seeds=seeds))
        started = time.perf_counter()
        number = fill(runpy.run_path(str(file))["STUDY"], storage)
        filled_s = time.perf_counter() - started
        times_s = [rerun(file, storage) for _ in range(times)]
    result: dict[str, Any] = {
        "trials": number,
        "cells": number // seeds,
        "seeds": seeds,
        "filled_s": round(filled_s, 1),
        "reruns_s": [round(took_s, 2) for took_s in times_s],
        "median_s": round(statistics.median(times_s), 2),
        "limit_s": LIMIT_S,
    }
    write(out, "ledger-rerun", result)
    click.echo(f"{number} trials: {result['median_s']} s (limit {LIMIT_S:g} s), each {result['reruns_s']}")
