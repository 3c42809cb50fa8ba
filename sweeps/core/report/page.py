"""The report as one page that needs nothing but a browser, and is the dashboard while the study runs.

The page holds the table, the figures and the gallery. What opens under a row (its seeds, what its config has
different, the end of its logs) is data that a small script shows. Of more than ``INLINE_TRIALS`` trials it lies in
files beside the page, which are loaded as scripts: that works from a disk and a bucket, too, where fetching does not.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sweeps.core.design.study import Cell, PlannedRow
from sweeps.core.findings.analysis import Analysis
from sweeps.core.plan.forecast import duration, scorecard
from sweeps.core.report import curves, figures
from sweeps.core.report.gallery import gallery
from sweeps.core.report.table import (
    DIFFERENCE_HEADINGS,
    NOT_VOC,
    TERM_HEADINGS,
    Table,
    TableBlock,
    TableRow,
    difference_texts,
    printed,
)
from sweeps.core.store.study_record import State, StudyRecord, TrialRecord
from toco.passwords import public_text
from toco.room import size
from toco.train.records import METRICS, read_row

INLINE_TRIALS = 2000
"""Details of up to so many trials are in the page itself."""
ROWS_PER_PAGE = 200
ROWS_PER_FILE = 100
REFRESH_S = 30
LOG_LINES = 6
MAX_FAILURES, MAX_RUNNING, MAX_FOOTNOTES = 20, 50, 50
MAX_FAULTS = 5
_STATES: tuple[State, ...] = ("finished", "running", "failed", "diverged", "waiting")
_NEVER_SHARED = frozenset({"seed"})


@dataclass(frozen=True, slots=True)
class Page:
    """The page.

    Attributes:
        html: The page itself.
        details: The files beside it by relative name; there are none for a small study.
        remarks: Which pictures and curves are left out since their files are missing or damaged, in sentences.
    """

    html: str
    details: Mapping[str, str]
    remarks: tuple[str, ...]


def page(study: StudyRecord, analysis: Analysis, table: Table, written: str) -> Page:
    """The page of a study as it stands, which may be unfinished.

    Args:
        study: The study.
        analysis: Its numbers, for the figures.
        table: Its numbers in words: what the page prints is what the other forms print.
        written: When, for the reader of a page that is still being written.
    """
    environment = _environment()
    is_small = len(study.trials) <= INLINE_TRIALS
    details = _details(study, table, logs=is_small)
    script = environment.get_template("script.html.j2").render()
    lines = curves.read_lines(study)
    counts = Counter(trial.state for trial in study.trials)
    blocks = [_block(environment, analysis, table, block) for block in table.blocks]
    faults = [*lines.faults]
    matrices = gallery(study, faults)
    remarks = _remarks(study, faults)
    html = environment.get_template(
        "report.html.j2"
    ).render(
        study=study,
        table=table,
        blocks=blocks,
        num_rows=len(study.rows),
        total=len(study.trials),
        counts=[(state, counts[state]) for state in _STATES if counts[state]],
        unfinished=counts["finished"] < len(study.trials),
        failures=_failures(study),
        running=_running(study),
        eta=None if study.eta_s is None else duration(study.eta_s),
        refresh_s=REFRESH_S if study.running else None,
        all_printed=len(study.rows) <= ROWS_PER_PAGE,
        not_voc=NOT_VOC if NOT_VOC in table.captions else None,
        captions=[caption for caption in table.captions if caption != NOT_VOC],
        max_footnotes=MAX_FOOTNOTES,
        difference_headings=DIFFERENCE_HEADINGS,
        difference_texts=difference_texts,
        term_headings=TERM_HEADINGS,
        plots={
            "differences": _safe(figures.differences(study, analysis, table)),
            "means": _safe(figures.means(study, analysis, table)),
            "interactions": _safe(figures.interactions(analysis, table)),
            "thresholds": _safe(curves.thresholds(lines)),
            "similarity": _safe(curves.similarity(lines, published=any(block.paper for block in study.blocks))),
            "training": _safe(curves.training(study, table, lines)),
        },
        left_out=[(block.title, block.left_out) for block in lines.blocks if block.left_out],
        gallery=matrices,
        remarks=remarks,
        forecast=_forecast(study),
        facts=_facts(study),
        config=_shared_config(study),
        written=written,
        policy=_policy(script),
        script=Markup(script),  # noqa: S704
        data=_json(
            {
                "name": f"{study.name}-{study.digest[:8]}",
                "running": study.running,
                "refreshAfterS": REFRESH_S,
                "rowsPerPage": ROWS_PER_PAGE,
                "rowsPerFile": ROWS_PER_FILE,
                "written": re.sub(r"\W", "", written),
                "metrics": [
                    [column.title, metric.higher_is_better]
                    for column, metric in zip(table.columns, study.metrics, strict=True)
                ],
            }
        ),
        details=_json(details if is_small else {}),
    )
    return Page(html, {} if is_small else _files(details), remarks)


def _remarks(study: StudyRecord, faults: Iterable[str]) -> tuple[str, ...]:
    """The first of some faults, with files by their names in the storage, and how many more there are."""
    distinct = list(dict.fromkeys(fault.replace(f"{study.path.parent}/", "") for fault in faults))
    more = [f"And {len(distinct) - MAX_FAULTS} more files."] if len(distinct) > MAX_FAULTS else []
    return (*distinct[:MAX_FAULTS], *more)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("sweeps.core.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _safe(svg: str | None) -> Markup | None:
    """Made by Matplotlib, which escapes the texts in it."""
    return None if svg is None else Markup(svg)  # noqa: S704


def _policy(script: str) -> str:
    """What the page may load: its own script, known by its digest, and what that script loads; nothing by markup."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}' 'strict-dynamic'"
    )


def _json(value: object) -> Markup:
    """JSON that can stand in a script element: nothing in it ends one."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))  # noqa: S704


def _block(environment: Environment, analysis: Analysis, table: Table, block: TableBlock) -> dict[str, Any]:
    """A block with its rows as markup: those of the first page, and the others as data."""
    row_markup = environment.get_template("rows.html.j2").module.row  # type: ignore[attr-defined]
    rows = [str(row_markup(row, block, _unfinished(analysis, row))) for row in block.rows]
    rest = None
    if len(rows) > ROWS_PER_PAGE:
        figures_of = [analysis.rows[row.number].figures for row in block.rows]
        summaries = [[row_figures[column.key].summary for column in table.columns] for row_figures in figures_of]
        means = [[None if summary is None else round(summary.mean, 6) for summary in row] for row in summaries]
        rest = _json({"rows": rows[ROWS_PER_PAGE:], "means": means})
    first = Markup("".join(rows[:ROWS_PER_PAGE]))  # noqa: S704
    return {"block": block, "rows": first, "shown": ROWS_PER_PAGE, "count": len(rows), "rest": rest}


def _unfinished(analysis: Analysis, row: TableRow) -> list[tuple[str, int]]:
    states = analysis.rows[row.number].states
    return [(state, states[state]) for state in ("running", "failed", "diverged") if states.get(state)]


def _details(study: StudyRecord, table: Table, logs: bool) -> dict[int, dict[str, Any]]:
    """What opens under every row, by its number.

    Args:
        study: The study.
        table: Its table.
        logs: Read the end of every trial's log; of a large study only of those that are not finished.
    """
    # Most rows have the same base: its config is taken apart once.
    numbers = {row.versus for row in study.rows if row.versus is not None}
    bases = {number: _resolved(study, study.rows[number]) for number in numbers}
    cells = [[_trial(study, table, trial, logs) for trial in trials] for trials in study.trials_by_cell]
    return {
        row.number: {
            "versus": row.versus,
            "remarks": [table.footnotes[number - 1] for number in row.footnotes],
            "means": [
                [column.title, value.text, value.interval or "-", value.n]
                for column, value in zip(table.columns, row.values, strict=True)
            ],
            "differences": [
                [
                    difference.column.title,
                    difference.value,
                    difference.interval or "-",
                    (difference.p or "-") if difference.declared else "not declared",
                    difference.effect or "-",
                    difference.images or "-",
                    difference.remark,
                ]
                for difference in row.differences
            ],
            "config": _changes(study, study.rows[row.number], bases),
            "trials": cells[study.rows[row.number].cell],
        }
        for block in table.blocks
        for row in block.rows
    }


def _trial(study: StudyRecord, table: Table, trial: TrialRecord, logs: bool) -> list[Any]:
    wall, memory = trial.entry.get("wall_time_s"), trial.entry.get("peak_memory_bytes")
    values = [(trial.value(column.key), column) for column in table.columns]
    return [
        trial.key,
        trial.seed,
        trial.state,
        trial.step,
        trial.attempts,
        "-" if wall is None else duration(wall),
        "-" if not memory else size(memory),
        ["-" if value is None else printed(value, percent=column.percent) for value, column in values],
        trial.message,
        _log_tail(trial.run_dir) if logs or trial.state in ("running", "failed", "diverged") else [],
        study.mlflow.trial(trial.key) if study.mlflow else None,
    ]


def _log_tail(run_dir: Path) -> list[str]:
    """The last rows of a run's metrics, one line each; none where there is no such file."""
    try:
        with (run_dir / METRICS).open("rb") as file:
            file.seek(max(file.seek(0, 2) - LOG_LINES * 2048, 0))
            lines = file.read().splitlines()[-LOG_LINES:]
    except OSError:
        return []
    return [text for line in lines if (text := _log_line(line))]


def _log_line(line: bytes) -> str | None:
    row = read_row(line)
    if row is None:
        return None  # damaged, or cut off by a crash or by where reading began
    try:
        values = [f"{key.partition('/')[2]} {value:.4g}" for key, value in row["values"].items() if value is not None]
        return f"{row['kind']} after step {row['step']}, {row['time_s']:.0f} s: {', '.join(values)}"
    except (ValueError, TypeError):
        return None


def _changes(study: StudyRecord, row: PlannedRow, bases: Mapping[int, Mapping[str, Any]]) -> list[list[str]]:
    """Every field in which the row's config differs from that of the row it is compared with: path, there, here."""
    base = None if row.versus is None else study.rows[row.versus]
    here, there = _resolved(study, row), {} if row.versus is None else bases[row.versus]
    if base is None or not here or not there:
        planned, changes = {} if base is None else study.changes_of(base), study.changes_of(row)
        paths = [path for path in {**planned, **changes} if _differ(path, planned, changes)]
        return [[path, _shown(planned, path), _shown(changes, path)] for path in paths]
    paths = [path for path in {**there, **here} if path not in _NEVER_SHARED and _differ(path, there, here)]
    return [[path, _shown(there, path), _shown(here, path)] for path in paths]


def _differ(path: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    return path not in there or path not in here or there[path] != here[path]


def _shown(config: Mapping[str, Any], path: str) -> str:
    return public_text(json.dumps(config[path])) if path in config else "as the recipe has it"


def _resolved(study: StudyRecord, row: PlannedRow) -> dict[str, Any]:
    """The leaves of the first config that was trained; empty where none was."""
    return next((flatten(trial.entry["config"]) for trial in study.trials_of(row) if trial.entry), {})


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config's leaves by dotted path.

    >>> flatten({"seed": 0, "method": {"ptc": {"weight": 0.2}, "scales": [1, 2]}})
    {'seed': 0, 'method.ptc.weight': 0.2, 'method.scales': [1, 2]}
    """
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _files(details: Mapping[int, Mapping[str, Any]]) -> dict[str, str]:
    """The details as scripts, ``ROWS_PER_FILE`` rows each, that hand them to the page's own script."""
    numbers = sorted(details)
    parts: dict[int, dict[int, Mapping[str, Any]]] = {}
    for number in numbers:
        parts.setdefault(number // ROWS_PER_FILE, {})[number] = details[number]
    return {f"details/{part:04d}.js": f"tocoDetails({part},{_json(content)});\n" for part, content in parts.items()}


def _failures(study: StudyRecord) -> list[dict[str, Any]]:
    """Trials that failed or diverged, those with the same last line together; the most frequent first."""
    groups: dict[tuple[str, str], list[tuple[Cell, TrialRecord]]] = {}
    for cell, trials in zip(study.cells, study.trials_by_cell, strict=True):
        for trial in trials:
            if trial.state in ("failed", "diverged"):
                last = (trial.message or "no message").strip().rpartition("\n")[2]
                groups.setdefault((trial.state, last), []).append((cell, trial))
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        {
            "state": state,
            "last": last,
            "count": len(members),
            "names": [f"{cell.label}, seed {trial.seed}" for cell, trial in members[:5]],
            "attempts": max(trial.attempts for _, trial in members),
            "message": members[0][1].message or "",
        }
        for (state, last), members in ordered[:MAX_FAILURES]
    ]


def _running(study: StudyRecord) -> list[tuple[str, int, int | None]]:
    """Trials that run: name, step, and steps in all where a trial of the study has ended and tells."""
    steps = next((trial.entry["config"].get("num_steps") for trial in study.trials if trial.entry), None)
    found = [
        (f"{cell.label}, seed {trial.seed}", trial.step, steps)
        for cell, trials in zip(study.cells, study.trials_by_cell, strict=True)
        for trial in trials
        if trial.state == "running"
    ]
    return found[:MAX_RUNNING]


def _forecast(study: StudyRecord) -> tuple[str, ...]:
    """What was foretold beside what happened, in sentences."""
    if study.forecast is None:
        return ()
    # What another study had trained before was not foretold.
    entries = [trial.entry for trial in study.trials if trial.entry and trial.entry["origin"]["study"] == study.name]
    return scorecard(study.forecast, entries, None)


def _facts(study: StudyRecord) -> list[tuple[str, str]]:
    """What was run, on what; where the trials differ all values are named."""
    entries = [trial.entry for trial in study.trials if trial.entry]
    provenance = [entry.get("provenance") or {} for entry in entries]
    finished = sum(trial.counts for trial in study.trials)
    facts = [
        ("Recipe", study.recipe),
        ("Data", study.data),
        ("Design", f"{study.design}, for {'effects of a size' if study.purpose == 'effect' else 'direction'}"),
        (
            "Changed from the recipe",
            ", ".join(f"{path} = {value}" for path, value in study.changes.items()) or "nothing",
        ),
        ("Seeds", ", ".join(map(str, study.seeds))),
        ("Trials", f"{finished} of {len(study.trials)} finished"),
        ("Study digest", study.digest),
    ]
    commits = (
        "unknown (not in a git checkout)" if commit is None else commit + (" with uncommitted changes" if dirty else "")
        for commit, dirty in dict.fromkeys((p.get("commit"), p.get("dirty")) for p in provenance)
    )
    facts.append(("Commit", _distinct(commits)))
    versions = (", ".join(f"{name} {v}" for name, v in p.get("versions", {}).items()) for p in provenance)
    facts.append(("Versions", _distinct(versions)))
    facts.append(("Hardware", _distinct(f"{p.get('device')}, {p.get('platform')}" for p in provenance if p)))
    facts.append(("Weights (sha256)", _distinct(p.get("weights_sha256") or "none from a file" for p in provenance)))
    manifests = (", ".join(f"{split} {v[:16]}" for split, v in p.get("data_manifest", {}).items()) for p in provenance)
    facts.append(("Data manifest (sha256)", _distinct(manifests)))
    times = [entry["wall_time_s"] for entry in entries if entry.get("wall_time_s") is not None]
    if times:
        facts.append(("Time", f"{duration(sum(times))} in all trials together, {duration(max(times))} the longest"))
    memory = [entry["peak_memory_bytes"] for entry in entries if entry.get("peak_memory_bytes")]
    if memory:
        facts.append(("Peak memory", f"{size(max(memory))} in one trial"))
    attempts = sum(trial.attempts for trial in study.trials)
    if attempts:
        facts.append(("Failed attempts", str(attempts)))
    return [(name, value) for name, value in facts if value]


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))


def _shared_config(study: StudyRecord) -> list[tuple[str, str]]:
    """The leaves of the first config that was trained; what the study varies says so."""
    entry = next((trial.entry for trial in study.trials if trial.entry), None)
    varied = {path for cell in study.cells for path in cell.changes} | _NEVER_SHARED
    leaves = {} if entry is None else flatten(entry["config"])
    return [(path, "varies" if path in varied else _shown(leaves, path)) for path in leaves]
