"""Studies with invented results: a storage with thousands of trials, without a training."""

from __future__ import annotations

import random
import runpy
from pathlib import Path
from unittest.mock import patch

from sweeps.core.plan.survey import Situation, survey
from sweeps.core.store.ledger_entry import LedgerEntry, Origin, Resources

STUDY_FILE = '''"""A study of {cells} configurations, made up to time its command."""

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study

STUDY = Study(
    name="ledger_rerun",
    title="A finished study of {cells} configurations",
    recipe="shapes_nano",
    # The A/A row is the last configuration.
    design=OneFactor(
        (
            Factor(
                "method.temperature",
                tuple(0.1 + number / 10_000 for number in range({cells} - 1)),
            ),
        )
    ),
    seeds=tuple(range({seeds})),
    metrics=(
        Metric("val/cam_miou", "M"),
        Metric("val/aux_cam_miou", "M_m"),
        Metric("val/seg_miou", "seg"),
    ),
    purpose="direction",
)
main = study_command(STUDY, __doc__)

if __name__ == "__main__":
    main()
'''


def fill(
    file: Path, storage: Path, trials: int, seeds: int, share_failed: float = 0.0
) -> Situation:
    """Write a study, and store an invented result for every missing trial, without disk syncs.

    Args:
        file: The script of the study to write.
        storage: Folder of the ledger.
        trials: Number of trials, rounded down to a multiple of ``seeds``.
        seeds: Number of seeds of each configuration.
        share_failed: Fraction of trials that fail.
    """
    file.write_text(STUDY_FILE.format(cells=trials // seeds, seeds=seeds))
    study = runpy.run_path(str(file))["STUDY"]
    situation = survey(study, storage)
    assert isinstance(situation, Situation)  # noqa: S101 - of a study
    with patch("os.fsync"):
        for task in situation.missing():
            draw = random.Random(task.key)  # noqa: S311 - no secret
            if draw.random() < share_failed:
                trace = "Traceback:\n" + "  a line\n" * 20 + "MemoryError"
                situation.ledger.add_failure(task.key, "MemoryError", trace)
                continue
            config = task.config.resolved()
            entry = LedgerEntry(
                key=task.key,
                training_key=task.identity.training_key,
                status="finished",
                step=config.num_steps,
                attempts=0,
                message=None,
                identity=task.identity.parts,
                config=config.model_dump(mode="json"),
                metrics={metric.key: 0.5 + draw.gauss(0, 0.02) for metric in study.metrics},
                wall_time_s=60.0,
                step_time_s=0.3,
                peak_memory_bytes=800_000_000,
                provenance={
                    "commit": None,
                    "dirty": None,
                    "device": "CPU",
                    "versions": {},
                    "platform": "",
                },
                resources=Resources(1.0, 0.0),
                origin=Origin(study.name, study.recipe),
                run=f"runs/{task.key}",
            )
            situation.ledger.write(entry)
    return situation
