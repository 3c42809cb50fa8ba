"""Factors that vary together: interaction plots, analysis of variance, two-level effects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from sweeps.core.design.study import Metric
from sweeps.core.findings.analysis import StudyAnalysis
from sweeps.core.findings.interactions import Crossing
from sweeps.core.report.drawing import (
    MARKERS,
    MAX_LINES,
    MUTED,
    SERIES,
    STYLE,
    grid,
    label_rows,
    svg,
)
from sweeps.core.report.numbers import format_difference, format_interval, format_p
from sweeps.core.report.section import Card, Section, Source, common_seeds
from sweeps.core.report.text_grid import TextColumn, TextGrid, make_cells
from sweeps.core.statistics.anova import Effect
from sweeps.core.store.study_record import StudyRecord

MAX_CROSSINGS = 9
"""Largest number of panels in the figure: three rows of three, which fill a screen."""
_CAPTION = (
    "Lines that are not parallel show an interaction: the effect of one factor depends on the "
    "other. The grey band is the noise floor around the first line."
)
_COLUMNS = (
    TextColumn("term"),
    *(TextColumn(heading, "right") for heading in ("df", "F", "p", "partial η²")),
)

_Pair = tuple[Crossing, Metric, str, str]


def _show(source: Source) -> Card | str:
    analysis = source.analysis
    if not analysis.crossings:
        return "no two factors were varied together, as far as trials have finished"
    pairs = _pairs(analysis, source.table.metrics)
    grids = tuple(_terms(crossing, source.study) for crossing in analysis.crossings)
    return Card(
        _CAPTION + common_seeds(source), (lambda: _draw(analysis, pairs)) if pairs else None, grids
    )


INTERACTIONS = Section("interactions", "Factors varied together", _show, text="body")


def _terms(crossing: Crossing, study: StudyRecord) -> TextGrid:
    """Make the table of an analysis of variance, one line for each term.

    The notes list the terms that it leaves out, and the two-level effects.
    """
    metric = next(metric for metric in study.metrics if metric.key == crossing.metric)
    lines = [
        make_cells(
            term.name,
            str(term.df),
            f"{term.f:.2f}",
            format_p(term.p),
            f"{term.partial_eta_squared:.3f}",
        )
        for term in crossing.anova.terms
    ]
    lines.append(make_cells("noise", str(crossing.anova.residual_df), "", "", ""))
    return TextGrid(
        _COLUMNS,
        tuple(lines),
        title=f"{study.blocks[crossing.block].title}: analysis of variance of {metric.title}",
        notes=(
            *crossing.anova.notes,
            *(_effect(effect, metric.percent) for effect in crossing.effects),
        ),
    )


def _effect(effect: Effect, percent: bool) -> str:
    """Describe an effect in a two-level design with its aliases, as a sentence."""
    estimate = effect.estimate
    steps = ", ".join(
        f"{factor} from {low} to {high}"
        for factor, (low, high) in zip(effect.factors, effect.levels, strict=True)
    )
    interval = "" if estimate.low is None else f" ({format_interval(estimate, percent=percent)})"
    mixed = (
        f"; aliased with {', '.join(' x '.join(alias) for alias in effect.aliases)}"
        if effect.aliases
        else ""
    )
    kind = "Effect of" if len(effect.factors) == 1 else "Interaction of"
    return (
        f"{kind} {steps}: "
        f"{format_difference(estimate.difference, percent=percent)}{interval}{mixed}."
    )


def _pairs(analysis: StudyAnalysis, metrics: Sequence[Metric]) -> list[_Pair]:
    """List the panels: every two factors of a crossing, for the metrics in percent."""
    percent = {metric.key: metric for metric in metrics if metric.percent}
    pairs: list[_Pair] = []
    for crossing in analysis.crossings:
        if crossing.metric not in percent:
            continue
        for factor, other in dict.fromkeys((mean.factor, mean.other) for mean in crossing.means):
            pairs.append((crossing, percent[crossing.metric], factor, other))
    return pairs[:MAX_CROSSINGS]


def _draw(analysis: StudyAnalysis, pairs: Sequence[_Pair]) -> str:
    columns = 3 if len(pairs) > 2 else len(pairs)
    with rc_context(STYLE):
        figure, panels = grid(-(-len(pairs) // columns), columns)
        flat = [axes for row in panels for axes in row]
        for spare in flat[len(pairs) :]:
            spare.remove()
        for axes, (crossing, metric, factor, other) in zip(flat, pairs, strict=False):
            _draw_panel(axes, crossing, factor, other, analysis.floors.get(metric.key))
            name, lines = factor.rpartition(".")[2], other.rpartition(".")[2]
            axes.set(title=f"{metric.title}: {name} and {lines}", xlabel=name, ylabel="mIoU (%)")
            axes.legend(title=lines)
        return svg(
            figure,
            "interactions",
            "Means by two factors: lines that are not parallel show an interaction",
        )


def _draw_panel(
    axes: Axes, crossing: Crossing, factor: str, other: str, floor: float | None
) -> None:
    means = {
        (str(mean.level), str(mean.other_level)): 100 * mean.mean
        for mean in crossing.means
        if mean.factor == factor and mean.other == other
    }
    levels, lines = (list(dict.fromkeys(pair[number] for pair in means)) for number in (0, 1))
    for number, line in enumerate(lines[:MAX_LINES]):
        values = [means.get((level, line), np.nan) for level in levels]
        axes.plot(values, marker=MARKERS[number], color=SERIES[number], label=line)
        if floor is not None and number == 0:
            # The band lies around the first line only: inside it, no other line is distinguishable.
            low, high = (np.array(values) + sign * 100 * floor for sign in (-1, 1))
            axes.fill_between(
                range(len(levels)),
                low,
                high,
                color=MUTED,
                alpha=0.16,
                lw=0,
                label="noise band (A/A)",
            )
    label_rows(axes, levels)
