"""Report of a search: the Pareto front, the importance of its settings, and all trials.

It is printed, and written as Markdown, CSV and an HTML page.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from sweeps.core.design.search_space import Objective
from sweeps.core.findings.exit_status import CLEAN, INCOMPLETE, ExitCode
from sweeps.core.report.drawing import MUTED, SERIES, STYLE, svg
from sweeps.core.report.markdown import escaped, pipe
from sweeps.core.report.markup import REFRESH_S, policy, safe_svg, templates
from sweeps.core.report.report import PAGE, WrittenReport
from sweeps.core.report.terminal import plain, sentences
from sweeps.core.report.text_grid import Column, TextColumn, TextGrid, columns_csv, make_cells
from sweeps.core.store.search_record import (
    FEWEST_FOR_IMPORTANCE,
    SearchRecord,
    SearchTrial,
    read_search_record,
)
from toco.files import write_text

SELECTED = (
    "These are selected values: every trial was chosen after looking at others, and trained with "
    "one seed. They belong in no ablation table without a mark; a table that finds one of these "
    "trials puts a dagger on its row. To know what a setting does, run an ablation study of it, "
    "with other seeds."
)
FEW_TRIALS = 20
"""With fewer finished trials, the importance of a setting is only a hint.

A choice, not a measurement: a search of a few settings has about five trials for each.
"""


TrialColumn = Column[SearchTrial]
"""A column of the report, with one value for each trial."""


def write_search_report(path: Path, *, running: bool = False) -> WrittenReport:
    """Write ``search.md``, ``trials.csv`` and the page of a search.

    Args:
        path: Folder of the search, finished or not.
        running: Whether a driver runs the search, so that the page should reload itself.

    Raises:
        ValueError: ``path`` is not the folder of a search.
    """
    record = read_search_record(path)
    contents = {
        "search.md": _markdown(record),
        "trials.csv": trials_csv(record),
        PAGE: _page(record, running=running),
    }
    for name, content in contents.items():
        write_text(path / name, content)
    text, exit_code = search_text(record)
    return WrittenReport(
        text, contents["search.md"], path / PAGE, tuple(path / name for name in contents), exit_code
    )


def search_text(record: SearchRecord) -> tuple[str, ExitCode]:
    """Make the report for a terminal, with the exit status. It writes nothing.

    The exit status is 4 if a trial failed, else 0.
    """
    parts = [record.title, sentences([_summary(record)])]
    for grid in _grids(record):
        parts += [
            f"{grid.title}\n{plain(grid)}" if grid.lines else grid.title,
            sentences(grid.notes),
        ]
    exit_code = INCOMPLETE if any(trial.state == "failed" for trial in record.trials) else CLEAN
    return "\n\n".join([*parts, sentences([SELECTED])]), exit_code


def trials_csv(record: SearchRecord) -> str:
    """Make ``trials.csv`` with the raw values of all trials, for programs.

    A missing value is empty. A stopped trial has values at its rungs, but no results.
    """
    columns: list[TrialColumn] = [
        Column("trial", lambda trial: trial.number),
        Column("state", lambda trial: trial.state),
        Column("stopped_at", lambda trial: trial.stopped_at),
        Column("on_front", lambda trial: "yes" if trial.on_front else "no"),
        *map(_setting, record.space),
        *map(_objective, record.objectives),
        *(
            _rung(step, objective)
            for step in record.rungs
            for objective in record.objectives
            if objective.is_evaluated
        ),
        Column("key", lambda trial: trial.key),
    ]
    return columns_csv(columns, record.trials, lambda value: value)


def _setting(path: str) -> TrialColumn:
    def text(trial: SearchTrial) -> str:
        value = trial.values[path]
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return Column(path, lambda trial: trial.values[path], path.removeprefix("method."), text)


def _objective(objective: Objective) -> TrialColumn:
    def text(trial: SearchTrial) -> str:
        """Print the result; for a stopped trial, the value at its last rung in brackets."""
        if objective.key in trial.results:
            return objective.text(trial.results[objective.key])
        reached = {} if trial.stopped_at is None else trial.rungs.get(trial.stopped_at, {})
        value = reached.get(objective.key)
        return "-" if value is None else f"({objective.text(value)})"

    return Column(
        objective.key, lambda trial: trial.results.get(objective.key), _heading(objective), text
    )


def _rung(step: int, objective: Objective) -> TrialColumn:
    key = f"{objective.key} at step {step}"
    return Column(key, lambda trial: trial.rungs.get(step, {}).get(objective.key))


def _trials_grid(
    title: str,
    names: Sequence[TrialColumn],
    record: SearchRecord,
    trials: Iterable[SearchTrial],
    note: str,
) -> TextGrid:
    """Make a table of trials with their results and settings, one line each."""
    columns = [*names, *map(_objective, record.objectives), *map(_setting, record.space)]
    lines = tuple(make_cells(*(column.print(trial) for column in columns)) for trial in trials)
    return TextGrid(tuple(column.look for column in columns), lines, title, notes=(note,))


def _front(record: SearchRecord) -> TextGrid:
    note = (
        "The Pareto front: no other finished trial is better than one of these in one objective "
        "and no worse in the others. With one seed each, chance may have swapped neighbours on it."
    )
    note += "".join(map(_reservation, record.objectives)) + _recipe_note(record)
    number: TrialColumn = Column(
        "trial", None, "trial", lambda trial: str(trial.number), align="left"
    )
    return _trials_grid("Pareto front", [number], record, record.front, note)


def _importance(record: SearchRecord) -> TextGrid:
    objectives = [
        objective for objective in record.objectives if objective.key in record.importance
    ]
    first = record.importance[objectives[0].key] if objectives else {}
    lines = tuple(
        make_cells(
            path.removeprefix("method."),
            *(f"{100 * record.importance[objective.key][path]:.0f} %" for objective in objectives),
        )
        for path in sorted(first, key=lambda path: -first[path])
    )
    number = record.importance_n
    if not objectives:
        caption = (
            f"{number} finished trials are too few; importance needs at least "
            f"{FEWEST_FOR_IMPORTANCE} that differ."
        )
    else:
        caption = (
            "Each setting's share of the variance that the settings explain one by one; the shares "
            f"of an objective sum to 100 %. fANOVA over {number} finished trials. Trials that were "
            "stopped early are not among them."
        )
        caption += (
            f" With fewer than {FEW_TRIALS} this is only a hint." if number < FEW_TRIALS else ""
        )
    columns = (
        TextColumn("setting"),
        *(TextColumn(objective.title, "right") for objective in objectives),
    )
    return TextGrid(columns, lines, "Importance of the settings", notes=(caption,))


def _all_trials(record: SearchRecord) -> TextGrid:
    note = (
        "* on the front. A trial that was stopped at a rung is censored: it has no result, because "
        "it could have improved; its values at that rung are in brackets."
    )
    reasons: dict[str, list[str]] = {}
    for trial in record.trials:
        if trial.message:
            reasons.setdefault(f"{trial.state}: {trial.message}", []).append(str(trial.number))
    failures = [f" Trial {', '.join(numbers)} {reason}" for reason, numbers in reasons.items()]
    names: list[TrialColumn] = [
        Column(
            "trial",
            None,
            "trial",
            lambda trial: f"{trial.number}{'*' if trial.on_front else ''}",
            align="left",
        ),
        Column("state", None, "state", lambda trial: trial.state_text, align="left"),
    ]
    note += _recipe_note(record) + "".join(failures)
    return _trials_grid("All trials", names, record, record.trials, note)


def _reservation(objective: Objective) -> str:
    """Write a warning about an objective that a clock measures."""
    if not objective.key.endswith("_s"):
        return ""
    rounded = (
        f", rounded to steps of {100 * objective.resolution:g} %" if objective.resolution else ""
    )
    return (
        f" The {objective.title} depends on the machine and on everything else that ran "
        f"there{rounded}: a trial may be on the front only because the machine was less busy."
    )


def _recipe_note(record: SearchRecord) -> str:
    recipe_trials = [str(trial.number) for trial in record.trials if trial.values == record.start]
    return (
        f" Trial {', '.join(recipe_trials)} has the recipe's own settings." if recipe_trials else ""
    )


def _space(distribution: BaseDistribution) -> str:
    """Describe a distribution for people.

    >>> _space(FloatDistribution(2, 32, log=True)), _space(IntDistribution(7, 10))
    ('2 to 32, logarithmic', '7 to 10, integers')
    """
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(str, distribution.choices))}"
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return str(distribution)
    text = f"{distribution.low:g} to {distribution.high:g}"
    text += ", integers" if isinstance(distribution, IntDistribution) else ""
    return text + (", logarithmic" if distribution.log else "")


def _heading(objective: Objective) -> str:
    unit = "%" if objective.is_evaluated else "s" if objective.key.endswith("_s") else ""
    return f"{objective.title} [{unit}]" if unit else objective.title


def _summary(record: SearchRecord) -> str:
    states = [trial.state for trial in record.trials]
    state_counts = (
        ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        or "none begun"
    )
    text = f"{len(states)} of {record.num_trials} trials: {state_counts}."
    if record.rungs:
        text += (
            f" Rungs at step {', '.join(map(str, record.rungs))} of {record.num_steps}, "
            f"where one in {record.reduction} goes on; "
            "none lies before the last loss term has acted."
        )
    if record.fault is not None:
        fault = record.fault.replace(f"{record.path.parent}/", "")
        text += f" {fault} Later trials are not shown; the next run proposes them again."
    return text


def _grids(record: SearchRecord) -> tuple[TextGrid, ...]:
    return _front(record), _importance(record), _all_trials(record)


def _markdown(record: SearchRecord) -> str:
    parts = [f"# {escaped(record.title)}", f"**{escaped(SELECTED)}**", escaped(_summary(record))]
    for grid in _grids(record):
        parts += [
            f"## {grid.title}",
            *([pipe(grid)] if grid.lines else []),
            *map(escaped, grid.notes),
        ]
    return "\n\n".join(parts) + "\n"


def _page(record: SearchRecord, *, running: bool) -> str:
    facts = {
        "Recipe": record.recipe,
        "Data": record.data,
        "Seed": str(record.seed),
        "Digest": record.digest,
        "Random trials before proposals": str(record.num_random),
        **{f"Objective: {o.title}": f"{o.key}, {_better(o)}" for o in record.objectives},
        **{f"For all trials: {path}": str(value) for path, value in record.changes.items()},
        **{f"Space of {path}": _space(distribution) for path, distribution in record.space.items()},
    }
    return (
        templates()
        .get_template("search.html.j2")
        .render(
            title=record.title,
            is_embedded=record.data == "shapes",
            selected=SELECTED,
            summary=_summary(record),
            plot=_plot(record),
            grids=_grids(record),
            facts=facts,
            refresh_s=REFRESH_S if running else None,
            policy=policy(),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def _plot(record: SearchRecord) -> Markup | None:
    """Plot all finished trials over every pair of objectives.

    The front is coloured. A trial with the recipe's own settings is a square.
    """
    if not any(trial.results for trial in record.trials):
        return None
    pairs = list(itertools.combinations(record.objectives, 2))
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(pairs), 3.2), layout="constrained")
        for axes, (across, up) in zip(
            figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True
        ):
            _pair(axes, record, across, up)
        return safe_svg(
            svg(
                figure,
                "front",
                "Finished trials by every pair of objectives, the Pareto front in colour",
            )
        )


def _pair(axes: Axes, record: SearchRecord, across: Objective, up: Objective) -> None:
    for trial in record.trials:
        if not trial.results:
            continue
        x, y = (
            100 * trial.results[o.key] if o.is_evaluated else trial.results[o.key]
            for o in (across, up)
        )
        is_start = trial.values == record.start
        marker, size = ("s", 7) if is_start else ("o", 6 if trial.on_front else 4)
        axes.plot(x, y, marker, color=SERIES[0] if trial.on_front else MUTED, ms=size)
        if trial.on_front or is_start:
            axes.annotate(
                str(trial.number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8
            )
    axes.set_xlabel(f"{_heading(across)}, {_better(across)}")
    axes.set_ylabel(f"{_heading(up)}, {_better(up)}")
    axes.margins(0.12)


def _better(objective: Objective) -> str:
    return "more is better" if objective.higher_is_better else "less is better"
