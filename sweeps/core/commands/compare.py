"""Compare trainings that no study ran: the table, the tests and the page of a study."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sweeps.core.commands.command import integers
from toco.files import printable

if TYPE_CHECKING:
    # scipy and the report take seconds to import; -h needs neither.
    from sweeps.core.report.section import Section
    from sweeps.core.store.comparison_record import Comparison
    from sweeps.core.store.foreign_runs import ForeignRuns
    from sweeps.core.store.study_record import StudyRecord

SIGNIFICANCE = 0.05
"""Family-wise error rate, as in ``Study.significance``."""


@click.command("compare", short_help="Compare trainings that no study ran: a CSV file or a folder.")
@click.argument("path", metavar="FILE", type=click.Path(exists=True, path_type=Path))
@click.option("--base", metavar="ROW", help="Row that the others are compared with; the first.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="COLUMN",
    help="Metric of the table; the first one is tested. Several times for several; by default all.",
)
@click.option(
    "--row",
    "row_columns",
    multiple=True,
    metavar="COLUMN",
    help="Column that names the rows; several times if combinations of columns do.",
)
@click.option("--seed", "seed_column", metavar="COLUMN", help="Column of the seeds.")
@click.option(
    "--lower",
    multiple=True,
    metavar="METRIC",
    help="Metric of which lower values are better; several times for several.",
)
@click.option(
    "--percent",
    multiple=True,
    metavar="METRIC",
    help="Metric whose values are percent, such as 63.5. By default, name and values tell.",
)
@click.option(
    "--fraction",
    multiple=True,
    metavar="METRIC",
    help="Metric whose values are fractions, such as 0.635, to be printed in percent.",
)
@click.option(
    "--number",
    multiple=True,
    metavar="METRIC",
    help="Metric whose values are neither, to be printed as they are.",
)
@click.option(
    "--looks",
    callback=integers,
    metavar="N,N,...",
    help="Numbers of seeds at which to test, as in 3,5,7,10. With --output, seeds may be added.",
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0, min_open=True),
    help="Differences of the tested metric below this value count as none; in the file's unit.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write table.md, .csv, .tex and report.html there, and the record of the comparison.",
)
def compare(
    path: Path,
    base: str | None,
    metrics: tuple[str, ...],
    row_columns: tuple[str, ...],
    seed_column: str | None,
    lower: tuple[str, ...],
    percent: tuple[str, ...],
    fraction: tuple[str, ...],
    number: tuple[str, ...],
    looks: tuple[int, ...] | None,
    margin: float | None,
    output: Path | None,
) -> None:
    """Compare trainings that no study ran, with the tests and the table of a study.

    FILE is a CSV file with columns row, seed and metrics, an export of W&B's run table, what
    MLflow's search_runs returns, as CSV, or a folder of run folders of toco. Trainings of a row and
    of its base are paired by seed.

    Without --output nothing is written. With it, the folder keeps the rules and values: the same
    command compares again, and takes more seeds by the looks that were declared.
    """
    from sweeps.core.report.report import make_report, write_files
    from sweeps.core.store.comparison_record import make_comparison, read_comparison
    from sweeps.core.store.foreign_runs import read_runs
    from sweeps.core.store.foreign_study import foreign_study

    before = None if output is None else read_comparison(output)
    if before is not None:
        # What a second command leaves out is as recorded.
        metrics = metrics or tuple(metric.key for metric in before.metrics)
        row_columns = row_columns or before.row_columns
        seed_column = seed_column or before.seed_column
    runs = read_runs(path, row_columns, seed_column, metrics)
    comparison = make_comparison(
        runs,
        base=base,
        units={
            **dict.fromkeys(percent, "percent"),
            **dict.fromkeys(fraction, "fraction"),
            **dict.fromkeys(number, "number"),
        },
        lower=lower,
        looks=looks,
        margin=margin,
        significance=SIGNIFICANCE,
        before=before,
    )
    study = foreign_study(comparison, runs, path)
    notes = _notes(comparison, runs, study, is_recorded=output is not None)
    study = study.model_copy(update={"notes": notes})
    report = make_report(study, sections=_sections(runs))
    click.echo(f"{runs.detected}\n")
    if output is None:
        click.echo(report.terminal)
    else:
        comparison.write(output)
        written = write_files(report, output)
        click.echo(written.text)
        click.echo(f"Written to {printable(output)}: {', '.join(f.name for f in written.files)}.")
    sys.exit(report.verdict.exit_code)


def _sections(runs: ForeignRuns) -> tuple[Section, ...]:
    """Return the sections of the report; a table has no run folders."""
    from sweeps.core.report.sections import SECTIONS
    from sweeps.core.report.sections.classes import CLASSES
    from sweeps.core.report.sections.curves import SIMILARITY, THRESHOLDS, TRAINING
    from sweeps.core.report.sections.gallery import GALLERY

    if runs.kind == "run folders":
        return SECTIONS
    of_run_folders = (CLASSES, GALLERY, THRESHOLDS, SIMILARITY, TRAINING)
    return tuple(
        dataclasses.replace(section, show=_no_run_folders) if section in of_run_folders else section
        for section in SECTIONS
    )


def _no_run_folders(_source: object) -> str:
    return "it needs run folders, and the file has values only"


def _notes(
    comparison: Comparison, runs: ForeignRuns, study: StudyRecord, *, is_recorded: bool
) -> tuple[str, ...]:
    """Write the captions that a reader of foreign results needs; the first one is highlighted."""
    source = printable(comparison.source)
    if runs.kind == "run folders":
        first = (
            f"No study ran the trainings in {source}: their code was not compared. Settings, data "
            "and machines are compared as the run folders have them."
        )
    else:
        first = (
            f"toco did not run these trainings: neither settings, data nor code were compared. "
            f"Values, rows and pairs of seeds are as {source} says."
        )
    return (
        first,
        *runs.remarks,
        *_units(comparison, source),
        *_missing(comparison, study),
        *_rules(comparison, study, is_recorded=is_recorded),
    )


def _units(comparison: Comparison, source: str) -> list[str]:
    """Say how the values of scores were read, for each unit."""
    readings = {
        "percent": "are percent and printed as given",
        "fraction": "are fractions and printed in percent",
    }
    keys_by_unit: dict[str, list[str]] = {}
    for metric in comparison.metrics:
        keys_by_unit.setdefault(metric.unit, []).append(metric.key)
    return [
        f"Values in {source} {reading}: {', '.join(keys_by_unit[unit])}."
        for unit, reading in readings.items()
        if unit in keys_by_unit
    ]


def _missing(comparison: Comparison, study: StudyRecord) -> list[str]:
    """Name the seeds without a value, whose pairs are incomplete.

    With looks, a training that does not exist is no fault: its look may not need it.
    """
    runs = {(run.row, run.seed): run for run in comparison.runs}
    metrics_by_place: dict[str, list[str]] = {}
    for metric in comparison.metrics:
        for row in comparison.rows:
            seeds = [
                str(seed)
                for seed in comparison.seeds
                if seed in study.seeds
                and (
                    runs[row.label, seed].values[metric.key] is None
                    if (row.label, seed) in runs
                    else comparison.looks is None
                )
            ]
            if seeds:
                place = f"{row.label} with seed {', '.join(seeds)}"
                metrics_by_place.setdefault(place, []).append(metric.key)
    lacking = [f"{place} ({', '.join(keys)})" for place, keys in metrics_by_place.items()]
    return [f"Values are missing, so pairs are incomplete: {'; '.join(lacking)}."] * bool(lacking)


def _rules(comparison: Comparison, study: StudyRecord, *, is_recorded: bool) -> list[str]:
    """Say what is declared about further seeds, and which trainings the next look needs."""
    from sweeps.core.findings.looks import looks_of
    from sweeps.core.store.comparison_record import NEW_FOLDER, PEEKING

    if comparison.looks is None:
        if is_recorded:
            return [f"All seeds are tested once; more seeds are refused here. {NEW_FOLDER}"]
        return [
            f"Nothing is recorded, so the error rate holds for one test. {PEEKING} To add seeds "
            "later, give --looks and --output from the first result on."
        ]
    looks = ", ".join(map(str, comparison.looks))
    notes = [
        f"The looks after {looks} seeds were recorded when {comparison.recorded_with} seeds were "
        "there. Only complete looks count."
        if is_recorded
        else f"The looks after {looks} seeds are not recorded, so nothing shows that they were "
        "chosen before the results. --output records them."
    ]
    state = looks_of(study)
    used = study.first_seeds(state.num_seeds)
    unused = len(comparison.runs) - sum(trial.entry is not None for trial in used.trials)
    if unused:
        notes.append(f"Trainings that no look needs are not used: {unused}.")
    waiting = {
        cell.label: [str(trial.seed) for trial in trials if trial.entry is None]
        for cell, trials in zip(used.cells, used.trials_by_cell, strict=True)
    }
    needed = [f"{row} with seed {', '.join(seeds)}" for row, seeds in waiting.items() if seeds]
    if needed:
        notes.append(f"The next look needs {'; '.join(needed)}.")
    return notes
