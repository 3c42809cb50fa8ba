"""Claims of a sequential study: evidence at each look, boundaries and seeds.

A panel for each claim shows the p values by number of seeds. The boundary is that of the claim's
present level, so a point at or below the line is a crossing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.core.design.seeds import Sequential
from sweeps.core.findings.look_states import ClaimState, ComparisonState, Looks, Outcome
from sweeps.core.findings.looks import why_not_tested
from sweeps.core.report.drawing import INK, MAX_LINES, MUTED, PAPER, SERIES, STYLE, svg
from sweeps.core.report.markup import safe_svg
from sweeps.core.report.numbers import format_difference, format_interval, format_p, points
from sweeps.core.report.section import Card, Section, Source
from sweeps.core.report.text_grid import TextCell, TextColumn, TextGrid, make_cells
from sweeps.core.store.study_record import StudyRecord

_TITLE = "Claims, look by look"
MAX_PANELS = 24
"""Largest number of claims that are drawn: eight rows of three panels, about two screens."""
MAX_CELLS = 200
"""With more configurations, only ``table.csv`` has their numbers of seeds."""
_LOWEST_P = 1e-5
"""Lower end of the panels; smaller p values are drawn there."""
_OUTCOMES: Mapping[Outcome, str] = {
    "opposite": "opposite sign",
    "undecided": "undecided at the cap",
}
"""Outcomes that people read in other words."""
_CHIPS: Mapping[Outcome, str] = {
    "shown": "reproduced",
    "opposite": "contradicted",
    "open": "running",
}
"""Style of the outcome in the page."""
_CAPTION = (
    "Each panel is a claim: p values of its comparisons (logarithmic) by number of seeds. The line "
    "is the boundary at the claim's present level, dotted for looks to come; a point in the shaded "
    "area below it has crossed. Points are filled where the difference has the claimed sign."
)
_MARGIN_CAPTION = " No difference follows from the interval, which no panel shows."
_COLUMNS = (
    TextColumn("claim", wraps=True),
    TextColumn("outcome", wraps=True),
    *(TextColumn(heading, "right") for heading in ("look", "seeds", "evidence", "boundary")),
    TextColumn("row", wraps=True),
    *(TextColumn(heading, "right") for heading in ("p", "difference", "repeated interval")),
)


@dataclass(frozen=True, slots=True)
class ClaimPanel:
    """Drawing of a claim for the page.

    Attributes:
        name: Name of the claim.
        outcome: Outcome as text.
        chip: Style class of the outcome.
        numbers: Look, seeds and evidence as text.
        figure: The drawing.
    """

    name: str
    outcome: str
    chip: str
    numbers: str
    figure: Markup


def _show(source: Source) -> Card | str:
    study, looks, rules = source.study, source.analysis.looks, source.study.sequential
    if rules is None:
        return ""
    if not looks.claims:
        return "the study tests no claim"
    grids = [_claims(study, looks, rules)]
    if len(study.cells) <= MAX_CELLS:
        grids.append(_seeds(study, looks, rules))
    notes = (
        (f"Only the first {MAX_PANELS} of {len(looks.claims)} claims are drawn.",)
        if len(looks.claims) > MAX_PANELS
        else ()
    )
    return Card(
        _CAPTION + (_MARGIN_CAPTION if study.margin is not None else ""),
        grids=tuple(grids),
        notes=notes,
        content=lambda: _panels(study, looks, rules),
    )


LOOKS = Section("looks", _TITLE, _show, "looks.html.j2", text="body")


def _claims(study: StudyRecord, looks: Looks, rules: Sequential) -> TextGrid:
    """Make the table of the claims, one line for each comparison."""
    lines = []
    for claim in looks.claims:
        of_claim = [
            TextCell(claim.claim.name),
            TextCell(_outcome(study, claim), "strong"),
            *make_cells(
                f"{claim.num_looks} of {len(rules.looks)}",
                str(claim.n),
                format_p(claim.p),
                f"{claim.boundary:.2g}",
            ),
        ]
        for number, state in enumerate(claim.comparisons):
            first = of_claim if number == 0 else [TextCell("")] * len(of_claim)
            lines.append((*first, *_comparison(study, state)))
    notes = [
        "Evidence: sequential p value of the claim after Holm's correction over all claims; "
        f"{study.significance:g} decides. Boundary: p value that the next look needs, or, where "
        "the claim is closed, the last look. p: of the t test at the row's last look alone.",
        *(
            f"{claim.claim.name}: not tested, because {why_not_tested(study, claim)}."
            for claim in looks.claims
            if claim.outcome == "not tested"
        ),
    ]
    return TextGrid(_COLUMNS, tuple(lines), title=_TITLE, notes=tuple(notes))


def _comparison(study: StudyRecord, state: ComparisonState) -> tuple[TextCell, ...]:
    row = study.rows[state.comparison.row]
    metric = next(metric for metric in study.metrics if metric.key == state.comparison.metric)
    return make_cells(
        f"{row.label}, {metric.title}",
        format_p(state.looks[-1].p if state.looks else None),
        "-"
        if state.test is None
        else format_difference(state.test.difference, percent=metric.percent),
        format_interval(state.test, percent=metric.percent),
    )


def _outcome(study: StudyRecord, claim: ClaimState) -> str:
    if claim.outcome == "no difference" and study.margin is not None:
        margin = points(study.margin, percent=study.tests_scores)
        return f"no difference larger than {margin}"
    return _OUTCOMES.get(claim.outcome, claim.outcome)


def _seeds(study: StudyRecord, looks: Looks, rules: Sequential) -> TextGrid:
    """Make the table of the seeds of each row."""
    tests = study.tests
    again = {row.cell for row in study.rows if row.role == "a/a"}
    open_claims = [claim for claim in looks.claims if claim.outcome == "open"]
    needed_by = Counter(
        cell
        for claim in open_claims
        for cell in tests.cells_of(
            item.comparison for item in claim.comparisons if not item.is_decided
        )
    )
    tested = tests.cells_of(item for claim in tests.claims for item in claim.comparisons)
    columns = (
        TextColumn("row", wraps=True),
        TextColumn("finished", "right"),
        TextColumn("needed now", "right"),
        TextColumn("at most", "right"),
        TextColumn("open claims", "right"),
    )
    lines = []
    for number, (cell, trials) in enumerate(zip(study.cells, study.trials_by_cell, strict=True)):
        most = len(trials) if number in again else rules.cap if number in tested else rules.looks[0]
        finished = sum(trial.counts for trial in trials)
        numbers = finished, len(trials), most, needed_by[number]
        lines.append(make_cells(cell.label, *map(str, numbers)))
    most = sum(int(line[3].text) for line in lines)
    notes = (
        f"The study needs {len(study.trials)} of at most {most} trials so far; "
        f"{len(open_claims)} of {len(looks.claims)} claims are open.",
    )
    return TextGrid(columns, tuple(lines), title="Seeds of each row", notes=notes)


def _panels(study: StudyRecord, looks: Looks, rules: Sequential) -> list[ClaimPanel]:
    """Draw the panels of the page, with the same axes."""
    drawn = looks.claims[:MAX_PANELS]
    lowest = max(min(_p_values(drawn)) / 2, _LOWEST_P)
    return [
        ClaimPanel(
            claim.claim.name,
            _outcome(study, claim),
            _CHIPS.get(claim.outcome, ""),
            f"look {claim.num_looks} of {len(rules.looks)}, {claim.n} seeds, evidence "
            f"{format_p(claim.p)} ({study.significance:g} decides)",
            safe_svg(_draw(study, claim, rules, lowest, number)),
        )
        for number, claim in enumerate(drawn)
    ]


def _p_values(claims: Iterable[ClaimState]) -> list[float]:
    return [
        *(boundary for claim in claims for boundary in claim.boundaries),
        *(look.p for claim in claims for state in claim.comparisons for look in state.looks),
    ]


def _draw(
    study: StudyRecord, claim: ClaimState, rules: Sequential, lowest: float, number: int
) -> str:
    with rc_context(STYLE):
        figure = Figure(figsize=(3.1, 2.0), layout="constrained")
        axes = figure.subplots()
        _draw_boundary(axes, claim, rules, lowest)
        for place, state in enumerate(claim.comparisons[:MAX_LINES]):
            _draw_comparison(axes, study, state, SERIES[place], lowest)
        axes.set_yscale("log")
        ticks = [10.0**power for power in range(-5, 1) if 10.0**power >= lowest]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_ylim(lowest, 1.3)
        axes.set_xlim(rules.looks[0] - 0.6, rules.cap + 0.6)
        axes.set_xticks(rules.looks, list(map(str, rules.looks)))
        axes.set(xlabel="seeds", ylabel="p")
        axes.minorticks_off()
        if 1 < len(claim.comparisons) <= MAX_LINES:
            figure.legend(loc="outside lower left", ncols=3, handlelength=1.2, columnspacing=1.2)
            lines = -(-len(claim.comparisons) // 3)
            figure.set_figheight(figure.get_figheight() + 0.2 * lines)
        return svg(
            figure, f"look-{number}", f"{claim.claim.name}: p values by number of seeds, boundary"
        )


def _draw_boundary(axes: Axes, claim: ClaimState, rules: Sequential, lowest: float) -> None:
    axes.fill_between(
        rules.looks, [lowest] * len(rules.looks), claim.boundaries, color=MUTED, alpha=0.16, lw=0
    )
    past = claim.num_looks
    axes.plot(rules.looks[:past], claim.boundaries[:past], "_-", color=INK, lw=1.1)
    to_come = max(past - 1, 0)
    axes.plot(rules.looks[to_come:], claim.boundaries[to_come:], "_:", color=INK, lw=1.1)


def _draw_comparison(
    axes: Axes, study: StudyRecord, state: ComparisonState, colour: str, lowest: float
) -> None:
    """Draw the p values of a comparison."""
    row = study.rows[state.comparison.row]
    seeds = [look.n for look in state.looks]
    p = [max(look.p, lowest) for look in state.looks]
    axes.plot(seeds, p, color=colour, label=row.label)
    for look, height in zip(state.looks, p, strict=True):
        is_claimed = state.comparison.direction * look.difference >= 0
        axes.plot(
            look.n,
            height,
            "o",
            color=colour,
            mfc=colour if is_claimed else PAPER,
            clip_on=False,
            zorder=4,
        )
