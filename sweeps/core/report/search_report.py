"""The report of a search: its front, the importance of its settings, all its trials; printed, Markdown, CSV, a page."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from sweeps.core.ledger import partial_file
from sweeps.core.report.figures import MUTED, SERIES, STYLE, svg
from sweeps.core.report.markdown import escaped
from sweeps.core.search import STEP_TIME, Objective
from sweeps.core.search_record import FEWEST_FOR_IMPORTANCE, SearchRecord, SearchTrial, read_search_record

PAGE = "report.html"
SELECTED = (
    "These are selected values: every trial was chosen after looking at others, and trained with one seed. They belong "
    "in no ablation table without a mark; a table that finds one of these trials puts a dagger on its row. To know "
    "what a setting does, run an ablation study of it, with other seeds."
)
FEW = 20
"""With fewer finished trials than this, importance is hardly more than a hint."""
_REFRESH_S = 30
_METHOD = "method."


@dataclass(frozen=True, slots=True)
class SearchReport:
    """What was written.

    Attributes:
        text: Front, importance and all trials, for a terminal.
        note: The same in Markdown, which MLflow shows as the search's description.
        page: ``report.html``.
        files: ``search.md``, ``trials.csv`` and ``report.html``.
        is_complete: Whether every trial ended.
    """

    text: str
    note: str
    page: Path
    files: tuple[Path, ...]
    is_complete: bool


@dataclass(frozen=True, slots=True)
class _Table:
    """What all forms print; the first column is text."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    caption: str


def write_search_report(path: Path) -> SearchReport:
    """Write the report of the search as it stands, which may be unfinished.

    Raises:
        ValueError: ``path`` is not a search's folder.
    """
    record = read_search_record(path)
    tables = [_front(record), _importance(record), _all(record)]
    summary = _summary(record)
    contents = {
        "search.md": _markdown(record, summary, tables),
        "trials.csv": trials_csv(record),
        PAGE: _page(record, summary, tables),
    }
    for name, content in contents.items():
        with partial_file(path / name, content) as partial:
            partial.replace(path / name)
    ended = sum(trial.state in ("finished", "stopped", "diverged") for trial in record.trials)
    return SearchReport(
        text=_text(record, summary, tables),
        note=contents["search.md"],
        page=path / PAGE,
        files=tuple(path / name for name in contents),
        is_complete=ended == len(record.trials) >= record.num_trials,
    )


def trials_csv(record: SearchRecord) -> str:
    """All trials for programs: raw values, empty where there is none; a stopped trial has none, but its rungs do."""
    text = io.StringIO()
    evaluated = [objective for objective in record.objectives if objective.is_evaluated]
    rungs = [(step, objective) for step in record.rungs for objective in evaluated]
    headings = ["trial", "state", "stopped_at", "on_front", *record.space, *(o.key for o in record.objectives)]
    headings += [f"{objective.key} at step {step}" for step, objective in rungs]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*headings, "key"])
    for trial in record.trials:
        line: list[Any] = [trial.number, trial.state, trial.stopped_at, "yes" if trial.on_front else "no"]
        line += [trial.values[path] for path in record.space]
        line += [trial.results.get(objective.key) for objective in record.objectives]
        line += [trial.rungs.get(step, {}).get(objective.key) for step, objective in rungs]
        writer.writerow([*line, trial.key])
    return text.getvalue()


def _front(record: SearchRecord) -> _Table:
    settings = [_short(path) for path in record.space]
    lines = tuple((str(trial.number), *_results(record, trial), *_settings(record, trial)) for trial in record.front)
    caption = (
        "The Pareto front: finished trials that no other finished trial is at least as good as in everything. With one "
        "seed each, neighbours on it may have changed places by chance."
    )
    headings = ("trial", *map(_heading, record.objectives), *settings)
    return _Table("Pareto front", headings, lines, caption)


def _importance(record: SearchRecord) -> _Table:
    known = [objective for objective in record.objectives if objective.key in record.importance]
    first = record.importance[known[0].key] if known else {}
    lines = tuple(
        (path, *(f"{100 * record.importance[objective.key][path]:.0f} %" for objective in known))
        for path in sorted(first, key=lambda path: -first[path])
    )
    number = record.importance_n
    if not known:
        caption = f"Nothing can be said from {number} finished trials; it takes {FEWEST_FOR_IMPORTANCE} that differ."
    else:
        caption = (
            f"Share of the variance of each objective that a setting explains by itself: fANOVA over {number} finished "
            "trials. Trials that were stopped early are not among them."
        )
        caption += f" With fewer than {FEW} that is hardly more than a hint." if number < FEW else ""
    return _Table("Importance of the settings", ("setting", *(objective.title for objective in known)), lines, caption)


def _all(record: SearchRecord) -> _Table:
    lines = tuple(
        (
            f"{trial.number}{'*' if trial.on_front else ''}",
            trial.state_text,
            *_results(record, trial),
            *_settings(record, trial),
        )
        for trial in record.trials
    )
    caption = (
        "* on the front. What was stopped at a rung is censored: it has no result, as it could have become better."
    )
    reasons: dict[str, list[str]] = {}
    for trial in record.trials:
        if trial.message:
            reasons.setdefault(f"{trial.state}: {trial.message}", []).append(str(trial.number))
    failures = [f" Trial {', '.join(numbers)} {reason}" for reason, numbers in reasons.items()]
    headings = ("trial", "state", *map(_heading, record.objectives), *map(_short, record.space))
    return _Table("All trials", headings, lines, caption + "".join(failures))


def _results(record: SearchRecord, trial: SearchTrial) -> list[str]:
    return [
        objective.text(trial.results[objective.key]) if objective.key in trial.results else "-"
        for objective in record.objectives
    ]


def _settings(record: SearchRecord, trial: SearchTrial) -> list[str]:
    return [f"{value:.3g}" if isinstance(value := trial.values[path], float) else str(value) for path in record.space]


def _heading(objective: Objective) -> str:
    unit = "%" if objective.is_evaluated else "s" if objective.key.endswith("_s") else ""
    return f"{objective.title} [{unit}]" if unit else objective.title


def _short(path: str) -> str:
    return path.removeprefix(_METHOD)


def _summary(record: SearchRecord) -> str:
    states = [trial.state for trial in record.trials]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none begun"
    text = f"{len(states)} of {record.num_trials} trials: {counted}."
    if record.rungs:
        text += (
            f" Rungs at step {', '.join(map(str, record.rungs))} of {record.num_steps}, where one in "
            f"{record.reduction} goes on; none lies before the last loss term has acted."
        )
    return text


def _text(record: SearchRecord, summary: str, tables: Sequence[_Table]) -> str:
    parts = [record.title, summary]
    for table in tables:
        parts += [f"{table.title}\n{_printed(table, 'simple')}" if table.lines else table.title, table.caption]
    return "\n\n".join([*parts, SELECTED])


def _markdown(record: SearchRecord, summary: str, tables: Sequence[_Table]) -> str:
    parts = [f"# {escaped(record.title)}", f"**{escaped(SELECTED)}**", escaped(summary)]
    for table in tables:
        parts += [f"## {table.title}", *([_printed(table, "pipe")] if table.lines else []), escaped(table.caption)]
    return "\n\n".join(parts) + "\n"


def _printed(table: _Table, form: str) -> str:
    lines = [[escaped(cell) for cell in line] for line in table.lines] if form == "pipe" else table.lines
    align = ["left", *["right"] * (len(table.headings) - 1)]
    return tabulate(lines, headers=table.headings, tablefmt=form, colalign=align, disable_numparse=True)


def _page(record: SearchRecord, summary: str, tables: Sequence[_Table]) -> str:
    environment = Environment(
        loader=PackageLoader("sweeps.core.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    running = any(trial.state == "running" for trial in record.trials)
    plot = _plot(record)
    facts = {
        "Recipe": record.recipe,
        "Data": record.data,
        "Seed": str(record.seed),
        "Digest": record.digest,
        "Random trials before proposals": str(record.num_random),
        **{f"For all trials: {path}": str(value) for path, value in record.changes.items()},
        **{f"Space of {path}": str(distribution) for path, distribution in record.space.items()},
    }
    return environment.get_template("search.html.j2").render(
        title=record.title,
        is_embedded=record.data == "shapes",
        selected=SELECTED,
        summary=summary,
        plot=None if plot is None else Markup(plot),  # noqa: S704 - made by Matplotlib, which escapes the texts in it
        has_cost=any(objective.key == STEP_TIME for objective in record.objectives),
        tables=tables,
        facts=facts,
        refresh_s=_REFRESH_S if running else None,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _plot(record: SearchRecord) -> str | None:
    """Every pair of objectives with all finished trials; the front in colour, with the numbers of its trials."""
    finished = [trial for trial in record.trials if trial.results]
    if not finished:
        return None
    pairs = list(itertools.combinations(record.objectives, 2))
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(pairs), 3.2), layout="constrained")
        for axes, (across, up) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            _pair(axes, finished, across, up)
        return svg(figure, "front", "Finished trials by every pair of objectives, the Pareto front in colour")


def _pair(axes: Axes, finished: Sequence[SearchTrial], across: Objective, up: Objective) -> None:
    for trial in finished:
        x, y = (100 * trial.results[o.key] if o.is_evaluated else trial.results[o.key] for o in (across, up))
        axes.plot(x, y, "o", color=SERIES[0] if trial.on_front else MUTED, ms=6 if trial.on_front else 4)
        if trial.on_front:
            axes.annotate(str(trial.number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel(f"{_heading(across)}, {_better(across)}")
    axes.set_ylabel(f"{_heading(up)}, {_better(up)}")
    axes.margins(0.12)


def _better(objective: Objective) -> str:
    return "more is better" if objective.higher_is_better else "less is better"
