"""Compare a study with the paper's numbers and claims.

The paper reports one seed and no spread. A published number is therefore compared with the interval
in which one more seed of this study would lie. A claim is compared with the study's declared
comparisons, after their correction.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from scipy import special

from sweeps.core.design.claims import Comparison, comparisons_of
from sweeps.core.design.paper import Claim, Paper
from sweeps.core.design.study import PlannedRow
from sweeps.core.findings.analysis import StudyAnalysis
from sweeps.core.findings.comparisons import Figures
from sweeps.core.findings.confounders import is_run_only
from sweeps.core.findings.evaluations import num_images
from sweeps.core.findings.exit_status import CLEAN, CONTRADICTED, INCOMPLETE, ExitCode
from sweeps.core.findings.look_states import ClaimState, ComparisonState
from sweeps.core.findings.looks import budget_stop, why_not_tested
from sweeps.core.statistics.paired import CONFIDENCE
from sweeps.core.store.budget_record import BudgetStop
from sweeps.core.store.study_record import StudyRecord, TrialRecord

Outcome = Literal[
    "reproduced",
    "direction confirmed",
    "off",
    "too few seeds",
    "not confirmed",
    "underpowered",
    "contradicted",
    "no difference",
    "not decidable",
    "open",
    "not tested",
    "not tested at this scale",
    "no result",
]


@dataclass(frozen=True, slots=True)
class _Judgement:
    """Outcome of the comparison with something that the paper says.

    Attributes:
        outcome: Outcome as printed, except for ``off``.
        off_by: With the outcome ``off``: our value minus the published value, as a fraction. For a
            claim: our advantage minus the published advantage.
    """

    outcome: Outcome
    off_by: float | None

    @property
    def text(self) -> str:
        """The outcome as printed, such as ``reproduced`` or ``off by -0.7``."""
        return self.outcome if self.off_by is None else f"off by {100 * self.off_by:+.1f}"


@dataclass(frozen=True, slots=True)
class RowVerdict(_Judgement):
    """Outcome for one published number.

    It is ``reproduced``, ``off``, ``too few seeds``, ``not tested at this scale`` or ``no result``.

    Attributes:
        row: Number of our row.
        metric: Metric key.
    """

    row: int
    metric: str


@dataclass(frozen=True, slots=True)
class ClaimVerdict(_Judgement):
    """Outcome for one claim.

    ``direction confirmed`` is the best outcome in a setting other than the paper's. ``not
    confirmed`` means that the study could have shown its smallest effect, and did not.
    ``underpowered`` means that it could not, or that a study which asks for directions has a
    significant difference in the opposite direction. Both are outcomes of fixed lists of seeds. A
    claim of a sequential study can end with ``no difference`` (within its margin) or ``not
    decidable`` (given up, or the cap was reached) instead; ``open`` claims wait for more seeds.

    Attributes:
        name: Name of the claim.
        sentence: Outcome with its numbers.
    """

    name: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcomes for all published numbers and claims of a study.

    Attributes:
        rows: Outcomes for the published numbers that correspond to a row of the study.
        claims: Outcomes for the claims of the study's blocks.
        exit_code: 4 if a trial has no result, else 3 if a claim is contradicted, else 0.
        sentence: Summary in one sentence.
    """

    rows: tuple[RowVerdict, ...]
    claims: tuple[ClaimVerdict, ...]
    exit_code: ExitCode
    sentence: str


_FEWEST_SEEDS = 3
"""With fewer seeds no published number is judged: the interval would contain nearly all."""


def judge(study: StudyRecord, analysis: StudyAnalysis) -> Verdict:
    """Compare a study with the paper.

    Without a paper there are no outcomes, only the exit code and the summary.
    """
    rows = tuple(
        _row(study, analysis, row, key, published)
        for row in study.rows
        if (paper_row := study.published(row)) is not None
        for key, published in paper_row.metrics.items()
        if key in analysis.rows[row.number].figures
    )
    claims = tuple(
        _Judge(study, analysis, index, block.paper).judge(claim)
        for index, block in enumerate(study.blocks)
        if block.paper is not None
        for claim in block.paper.claims
    )
    without_result = sum(not _has_result(study, trial) for trial in study.trials)
    contradicted = any(claim.outcome == "contradicted" for claim in claims)
    code: ExitCode = INCOMPLETE if without_result else CONTRADICTED if contradicted else CLEAN
    differences = [state for state in analysis.looks.claims if state.claim.published is None]
    stop = budget_stop(study, analysis.looks)
    sentence = _summarise(study, claims, differences, without_result, stop)
    return Verdict(rows, claims, code, sentence)


def _has_result(study: StudyRecord, trial: TrialRecord) -> bool:
    """Whether a trial has finished, or has diverged in a study that declares a value for that."""
    sequential = study.sequential
    has_value = sequential is not None and sequential.diverged_value is not None
    return trial.counts or (has_value and trial.state == "diverged")


def same_setting(study: StudyRecord, paper: Paper) -> bool:
    """Whether the study has the paper's data, recipe and settings.

    Only then are the study's numbers comparable with the paper's.
    """
    is_same = study.data == paper.data and study.recipe == paper.recipe and not _changed(study)
    # A part of the data, in the same layout.
    return is_same and num_images(study.trials) in (None, paper.num_images)


def _changed(study: StudyRecord) -> list[str]:
    """List changes for all trainings that make the setting differ from the paper's.

    Locations of files and settings of speed do not count.
    """
    config: Mapping[str, Any] = next(
        (trial.entry.config for trial in study.trials if trial.entry), {}
    )
    return sorted(
        path
        for path, value in study.changes.items()
        # A path holds the weights that the recipe would load itself; None means random weights,
        # which is another setting.
        if not (path == "backbone.weights" and value is not None) and not is_run_only(config, path)
    )


def _row(
    study: StudyRecord, analysis: StudyAnalysis, row: PlannedRow, key: str, published: float
) -> RowVerdict:
    paper, summary = study.blocks[row.block].paper, analysis.rows[row.number].figures[key].summary
    if summary is None:
        return RowVerdict("no result", None, row.number, key)
    if paper is None or not same_setting(study, paper):
        return RowVerdict("not tested at this scale", None, row.number, key)
    if summary.n < _FEWEST_SEEDS or summary.sd is None:
        return RowVerdict("too few seeds", None, row.number, key)
    off_by, half = summary.mean - published, _half_width_for_next_seed(summary.n, summary.sd)
    # Without spread, only an equal number lies in the interval; the mean may be rounded.
    if abs(off_by) <= half or math.isclose(summary.mean, published):
        return RowVerdict("reproduced", None, row.number, key)
    return RowVerdict("off", off_by, row.number, key)


def _half_width_for_next_seed(n: int, sd: float) -> float:
    """Half width of the interval for one more seed, from ``n`` seeds with deviation ``sd``."""
    return float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd * math.sqrt(1 + 1 / n)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One comparison of a claim: the advantage of the better row, with its interval."""

    than: str
    figures: Figures
    advantage: float
    high: float | None
    confounders: tuple[str, ...]

    @property
    def text(self) -> str:
        paired, p = self.figures.paired, self.figures.p_holm
        n = paired.n if paired else 0
        test = f"p = {p:.2g} after Holm, n = {n}" if p is not None else f"n = {n}"
        marked = "; \u2020 " + "; ".join(self.confounders) if self.confounders else ""
        return f"{_signed(self.advantage)} over {self.than} ({test}{marked})"


class _Judge:
    """Judge of the claims of one block."""

    def __init__(
        self, study: StudyRecord, analysis: StudyAnalysis, block: int, paper: Paper
    ) -> None:
        self.study = study
        self.analysis = analysis
        self.block = block
        self.paper = paper
        self.same = same_setting(study, paper)

    def judge(self, claim: Claim) -> ClaimVerdict:
        state = next(
            (
                item
                for item in self.analysis.looks.claims
                if (item.claim.block, item.claim.published) == (self.block, claim)
            ),
            None,
        )
        if state is not None and (verdict := self._untested(state)) is not None:
            return verdict
        # The study's comparisons of the claim; without one of them the claim is not tested.
        results = self._comparisons(claim, state)
        refusals = [item for item in results if isinstance(item, str)]
        if refusals:
            return ClaimVerdict(
                "not tested", None, claim.name, f"Not tested: {'; '.join(dict.fromkeys(refusals))}."
            )
        comparisons = [item for item in results if not isinstance(item, str)]
        numbers = ", ".join(item.text for item in comparisons)
        place = f" This is not the paper's setting ({self._setting()}), so "
        scope = "" if self.same else f"{place}it can only confirm the direction."
        only_here = "" if self.same else f"{place}the claim is contradicted for this setting alone."
        if state is not None and (verdict := self._undecided(state, numbers, scope)) is not None:
            return verdict
        # Comparisons with a significant difference in the opposite direction.
        wrong = [item for item in comparisons if item.figures.significant and item.advantage < 0]
        blind = [item for item in comparisons if not _can_detect(item.figures, self.study)]
        # The looks of a sequential study have decided already.
        is_shown = (
            all(item.figures.significant and item.advantage > 0 for item in comparisons)
            if state is None
            else state.outcome == "shown"
        )
        is_opposite = bool(wrong) if state is None else state.outcome == "opposite"
        if is_opposite:
            # A study with a fixed list of seeds that only asks for directions, or that could not
            # have detected the effect, contradicts no claim.
            if state is None and (
                self.study.purpose == "direction" or all(item in blind for item in wrong)
            ):
                why = (
                    "the study asks for directions and was not planned to contradict a claim"
                    if self.study.purpose == "direction"
                    else "the study is too small to contradict a claim"
                )
                sentence = f"{numbers}: significant in the opposite direction, but {why}.{scope}"
                return ClaimVerdict("underpowered", None, claim.name, sentence)
            return ClaimVerdict(
                "contradicted",
                None,
                claim.name,
                f"{numbers}: significant in the opposite direction.{only_here}",
            )
        # No significant difference in the opposite direction: as claimed, or not shown.
        if not is_shown:
            return self._not_shown(claim, comparisons, blind, numbers, scope)
        if not self.same:
            return ClaimVerdict("direction confirmed", None, claim.name, f"{numbers}.{scope}")
        # The paper's setting: the size of the advantage counts, too.
        published = claim.by / 100
        short = [item for item in comparisons if item.high is not None and item.high < published]
        if short:
            off_by = min(item.advantage for item in short) - published
            sentence = (
                f"{numbers}: as claimed, but smaller: the paper has at least {claim.by:g} points."
            )
            return ClaimVerdict("off", off_by, claim.name, sentence)
        return ClaimVerdict(
            "reproduced",
            None,
            claim.name,
            f"{numbers}; the paper has at least {claim.by:g} points.",
        )

    def _not_shown(
        self,
        claim: Claim,
        comparisons: Sequence[_Comparison],
        blind: Sequence[_Comparison],
        numbers: str,
        scope: str,
    ) -> ClaimVerdict:
        unclear = [item for item in comparisons if not item.figures.significant]
        if any(item in blind for item in unclear):
            agree = sum(item.advantage > 0 for item in comparisons)
            sentence = (
                f"{numbers}: {agree} of {len(comparisons)} {'points' if agree == 1 else 'point'} "
                "the claimed way, and the study is too small to distinguish that from chance."
                f"{scope}"
            )
            return ClaimVerdict("underpowered", None, claim.name, sentence)
        smallest = _points(self.study.smallest_effect)
        sentence = (
            f"{numbers}: not significant, in a study with the power to show {smallest} points."
            f"{scope}"
        )
        if not self.same:
            return ClaimVerdict("not confirmed", None, claim.name, sentence)
        off_by = min(item.advantage for item in comparisons) - claim.by / 100
        return ClaimVerdict("off", off_by, claim.name, sentence)

    def _untested(self, state: ClaimState) -> ClaimVerdict | None:
        """Judge a claim of a sequential study without a test; ``None`` where it has one."""
        name, sequential = state.claim.name, self.study.sequential
        if state.outcome == "not tested":
            reason = why_not_tested(self.study, state)
            return ClaimVerdict("not tested", None, name, f"Not tested: {reason}.")
        if sequential is not None and not state.num_looks:
            sentence = f"Open: its first look is after {sequential.looks[0]} seeds."
            return ClaimVerdict("open", None, name, sentence)
        return None

    def _undecided(self, state: ClaimState, numbers: str, scope: str) -> ClaimVerdict | None:
        """Judge a claim of a sequential study by its looks; ``None`` where a sign was shown."""
        name, sequential = state.claim.name, self.study.sequential
        cap = sequential.cap if sequential else state.n
        if state.outcome == "open":
            stop = budget_stop(self.study, self.analysis.looks)
            ended = f"; {stop.short}" if stop is not None else ""
            sentence = f"{numbers}: open after {state.n} of at most {cap} seeds{ended}.{scope}"
            return ClaimVerdict("open", None, name, sentence)
        if state.outcome == "no difference" and self.study.margin is not None:
            margin = f"{100 * self.study.margin:g}"
            plural = "" if margin == "1" else "s"
            sentence = f"{numbers}: no difference larger than {margin} point{plural}.{scope}"
            return ClaimVerdict("no difference", None, name, sentence)
        if state.outcome in ("given up", "undecided"):
            reason = (
                f"given up after {state.n} seeds, because all {cap} could hardly decide it"
                if state.outcome == "given up"
                else f"not decided after {cap} seeds, the cap"
            )
            sentence = f"{numbers}: {reason}.{scope}"
            return ClaimVerdict("not decidable", None, name, sentence)
        return None

    def _comparisons(self, claim: Claim, state: ClaimState | None) -> list[_Comparison | str]:
        """Return the study's comparison for each row that is called worse, or why it has none.

        Args:
            claim: The claim.
            state: Its looks in a sequential study.
        """
        study = self.study
        found = comparisons_of(claim, self.block, study.rows, study.blocks, study.metrics)
        states = {item.comparison: item for item in (state.comparisons if state else ())}
        return [
            item if isinstance(item, str) else self._comparison(item, than, states.get(item))
            for item, than in zip(found, claim.than, strict=True)
        ]

    def _comparison(
        self, comparison: Comparison, than: str, state: ComparisonState | None
    ) -> _Comparison | str:
        row = self.study.rows[comparison.row]
        base = self.study.rows[row.versus if row.versus is not None else row.number]
        worse, better = (row, base) if row.paper_row == than else (base, row)
        figures = self.analysis.rows[row.number].figures[comparison.metric]
        if state is not None:
            # Another claim with this comparison may have had more looks.
            figures = replace(figures, paired=state.test, p_holm=state.p)
        if figures.paired is None:
            return f"no pair of trials of {better.label} and {worse.label} has finished"
        sign = comparison.direction
        ends = [sign * end for end in (figures.paired.low, figures.paired.high) if end is not None]
        return _Comparison(
            worse.label,
            figures,
            sign * figures.paired.difference,
            max(ends) if ends else None,
            self.analysis.rows[row.number].confounders,
        )

    def _setting(self) -> str:
        changed = _changed(self.study)
        differs = f", with other {', '.join(changed)}" if changed else ""
        images = num_images(self.study.trials)
        on = self.study.data if images is None else f"{images} images of {self.study.data}"
        paper = f"{self.paper.recipe} on {self.paper.num_images} images of {self.paper.data}"
        return f"{self.study.recipe} on {on}{differs}, not {paper}"


def _can_detect(figures: Figures, study: StudyRecord) -> bool:
    """Whether a comparison would have shown the study's smallest effect."""
    return figures.detectable is not None and figures.detectable <= study.smallest_effect


def _summarise(
    study: StudyRecord,
    claims: Sequence[ClaimVerdict],
    differences: Sequence[ClaimState],
    without_result: int,
    stop: BudgetStop | None,
) -> str:
    sentences = []
    if claims:
        outcomes = _counts(claim.outcome for claim in claims)
        number = f"{len(claims)} claim{'' if len(claims) == 1 else 's'}"
        sentences.append(f"Of {number} of the paper: {outcomes}.")
    elif study.source is None:
        sentences.append("The study tests no claim of the paper.")
    # A sequential study also decides differences that no paper claims. Trainings that no study ran
    # are compared with no paper at all.
    if (study.sequential is not None or study.source is not None) and differences:
        outcomes = _counts(state.outcome for state in differences)
        plural = "" if len(differences) == 1 else "s"
        sentences.append(f"Of {len(differences)} tested difference{plural}: {outcomes}.")
    if stop is not None:
        sentences.append(stop.sentence)
    if without_result:
        have = "has" if without_result == 1 else "have"
        sentences.append(
            f"{without_result} of {len(study.trials)} trials {have} no result, "
            "so this summary is preliminary."
        )
    return " ".join(sentences)


def _counts(outcomes: Iterable[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in Counter(outcomes).items())


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"
