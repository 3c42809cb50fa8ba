"""Replay looks: which claims are decided, and how many seeds that needs.

Decisions follow from the declared rules and the results alone, look by look. A study that is
stopped and started again, or read years later, comes to the same decisions.

At each look every comparison of an open claim gets a sequential p value: the smallest level at
which its repeated t test has crossed its boundary so far. A claim of several comparisons has the
largest of theirs. Holm's correction over the claims then decides (Maurer and Bretz 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from scipy import special

from sweeps.core.design.claims import Comparison, TestedClaim, Tests
from sweeps.core.design.seeds import Futility, Sequential
from sweeps.core.findings.look_states import ClaimState, ComparisonState, Looks, Outcome, PastLook
from sweeps.core.statistics.paired import CONFIDENCE, Paired, detectable_effect, holm, paired
from sweeps.core.statistics.sequential import Boundaries, boundaries

Results = Callable[[int, int], Mapping[str, float | None] | None]
"""Metrics of a trial, by index of its configuration and place among the seeds.

``None`` before the trial has a result. The mapping of a diverged trial is empty.
"""


def replay(tests: Tests, results: Results, at_most: int | None = None) -> Looks:
    """Replay the looks as far as the results go.

    A look needs all seeds of its prefix; results beyond it are not used. A fixed list of seeds is
    one look, which uses the pairs that exist.

    Args:
        tests: The claims and the rules.
        results: The results so far.
        at_most: Number of looks after which the replay of a sequential study stops; ``None`` for
            the last look that is over.
    """
    return (_Fixed if tests.sequential is None else _Replay)(tests, results).run(at_most)


def replay_each(tests: Tests, results: Results) -> tuple[Looks, ...]:
    """Return the state before the first look, and the state after each look that is over."""
    num_done = replay(tests, results).num_done
    return tuple(replay(tests, results, number) for number in range(num_done + 1))


class _Evidence:
    """Smallest levels at which a comparison has crossed so far; 1 where it has not."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.looks: list[PastLook] = []
        self.test: Paired | None = None
        # In the claimed direction, in the opposite one, and within the margin.
        self.shown = self.opposite = self.equal = 1.0
        self.is_testable = True
        self.is_decided = False

    def add(self, test: Paired, level: Callable[[float], float], margin: float | None) -> None:
        """Add a look.

        Args:
            test: The paired difference, with a p value.
            level: Converts a p value of this look to the smallest level at which it crosses.
            margin: Margin of "no difference".
        """
        self.test = test
        if test.p is None:
            return
        self.looks.append(PastLook(test.n, test.difference, test.p))
        crossing, direction = level(test.p), self.comparison.direction
        if direction == 0 or direction * test.difference > 0:
            self.shown = min(self.shown, crossing)
        else:
            self.opposite = min(self.opposite, crossing)
        if margin is not None and abs(test.difference) < margin:
            self.equal = min(self.equal, level(_equivalence_p(test, margin)))


class _Claim:
    """A claim and its evidence."""

    def __init__(self, claim: TestedClaim, evidence: Sequence[_Evidence], margin: bool) -> None:
        self.claim = claim
        self.evidence = tuple(evidence)
        self.is_given_up = False
        self.n = self.num_looks = 0
        # The parts of the level for the three outcomes of a claim with several comparisons: the
        # opposite sign of any of them is a union, so it takes Bonferroni's correction; with a
        # margin, half of the level is for the other two outcomes.
        several = len(self.evidence) > 1
        share = 2 if several and margin else 1
        self._opposite_factor = share * len(self.evidence)
        self._equal_factor = share

    @property
    def is_testable(self) -> bool:
        return all(item.is_testable for item in self.evidence)

    @property
    def levels(self) -> dict[Outcome, float]:
        """Smallest level at which each outcome is significant."""
        return {
            "shown": max(item.shown for item in self.evidence),
            "opposite": self._opposite_factor * min(item.opposite for item in self.evidence),
            "no difference": self._equal_factor * max(item.equal for item in self.evidence),
        }

    @property
    def level(self) -> float | None:
        """The sequential p value; ``None`` where nothing could be tested."""
        tests = [item.test for item in self.evidence]
        if not self.is_testable or any(test is None or test.p is None for test in tests):
            return None
        return min(1.0, *self.levels.values())


class _Replay:
    """The looks of a sequential study."""

    def __init__(self, tests: Tests, results: Results) -> None:
        self._tests = tests
        self._results = results
        self._claims = [
            _Claim(claim, [_Evidence(item) for item in claim.comparisons], tests.margin is not None)
            for claim in tests.claims
        ]
        self._corrected: list[float | None] = [None] * len(self._claims)

    @property
    def _rules(self) -> Sequential:
        assert self._tests.sequential is not None  # noqa: S101 - see ``replay``
        return self._tests.sequential

    @property
    def _boundaries(self) -> Boundaries:
        return boundaries(self._rules.looks, self._rules.spending)

    def run(self, at_most: int | None) -> Looks:
        looks = self._rules.looks
        # Rows without a claim get the seeds of the first look.
        counts = [min(number, looks[0]) for number in self._tests.num_seeds]
        num_done, is_waiting = 0, False
        for look, n in enumerate(looks):
            cells = self._tests.cells_of(item.comparison for item in self._open_evidence())
            if not cells:
                break
            for cell in cells:
                counts[cell] = n
            if look == at_most or not self._is_complete(cells, n):
                is_waiting = True
                break
            self._look(look, n)
            num_done = look + 1
        following = list(counts)
        if is_waiting and num_done + 1 < len(looks):
            for cell in cells:
                following[cell] = looks[num_done + 1]
        return self._state(num_done, counts, following)

    def _open(self) -> list[_Claim]:
        """Claims that the next look tests."""
        return [
            claim
            for claim, p in zip(self._claims, self._corrected, strict=True)
            if not (claim.is_given_up or self._is_rejected(p)) and claim.is_testable
        ]

    def _open_evidence(self) -> list[_Evidence]:
        return [item for claim in self._open() for item in claim.evidence if not item.is_decided]

    def _is_rejected(self, p: float | None) -> bool:
        return p is not None and p <= self._tests.significance

    def _is_complete(self, cells: Iterable[int], n: int) -> bool:
        return all(
            self._results(cell, replicate) is not None for cell in cells for replicate in range(n)
        )

    def _look(self, look: int, n: int) -> None:
        """Test all open claims with the first ``n`` seeds, and give up those that are futile."""
        tests, bounds = self._tests, self._boundaries
        repeated = 1 - bounds.boundary(look, 1 - CONFIDENCE)
        open_claims = self._open()
        for claim in open_claims:
            claim.n, claim.num_looks = n, look + 1
            for item in claim.evidence:
                if item.is_decided:
                    continue
                test = self._paired(item.comparison, n, repeated)
                if test is None:
                    item.is_testable = False
                else:
                    item.add(test, lambda p: bounds.level(look, p), tests.margin)
        self._correct()
        # Comparisons that have crossed at their claim's level need no more seeds.
        level = tests.significance / max(self._num_unrejected(), 1)
        for claim in open_claims:
            for item in claim.evidence:
                item.is_decided = item.is_decided or item.shown <= level
        futility = self._rules.futility
        if futility is not None and futility.from_seeds <= n < self._rules.cap:
            target = detectable_effect(
                self._rules.cap, len(self._claims), tests.significance, futility.power
            )
            for claim in self._open():
                claim.is_given_up = any(
                    not item.is_decided and _is_futile(item.test, futility, target)
                    for item in claim.evidence
                )

    def _paired(self, comparison: Comparison, n: int, confidence: float) -> Paired | None:
        """Return the paired difference over the first ``n`` seeds; ``None`` without every value."""
        row, base = (
            [self._value(cell, replicate, comparison.metric) for replicate in range(n)]
            for cell in self._cells(comparison)
        )
        values = [value for value in (*row, *base) if value is not None]
        if len(values) < 2 * n:
            return None
        return paired(
            {place: value for place, value in enumerate(row) if value is not None},
            {place: value for place, value in enumerate(base) if value is not None},
            confidence,
        )

    def _cells(self, comparison: Comparison) -> tuple[int, int]:
        row = self._tests.rows[comparison.row]
        assert row.versus is not None  # noqa: S101 - a comparison has a base
        return row.cell, self._tests.rows[row.versus].cell

    def _value(self, cell: int, replicate: int, metric: str) -> float | None:
        metrics = self._results(cell, replicate)
        if not metrics:
            # It diverged, or has no result yet.
            return None if metrics is None else self._rules.diverged_value
        value = metrics.get(metric)
        return None if value is None or not math.isfinite(value) else float(value)

    def _correct(self) -> None:
        self._corrected = holm([claim.level for claim in self._claims])

    def _num_unrejected(self) -> int:
        return sum(not self._is_rejected(p) for p in self._corrected)

    def _state(self, num_done: int, counts: Sequence[int], following: Sequence[int]) -> Looks:
        repeated_cells = {row.cell for row in self._tests.rows if row.role == "a/a"}
        return Looks(
            tuple(self._claim_state(number, num_done) for number in range(len(self._claims))),
            num_done,
            tuple(counts),
            min((n for cell, n in enumerate(counts) if cell not in repeated_cells), default=0),
            tuple(following),
        )

    def _claim_state(self, number: int, num_done: int) -> ClaimState:
        claim, p = self._claims[number], self._corrected[number]
        return ClaimState(
            claim.claim,
            self._outcome(claim, p, num_done),
            p,
            claim.n,
            claim.num_looks,
            self._boundaries_at(self._level(number)),
            tuple(self._comparison_state(number, item) for item in claim.evidence),
        )

    def _level(self, number: int) -> float:
        """Return the level of a claim in its step of Holm's correction."""
        num_left = self._num_unrejected()
        if self._is_rejected(self._corrected[number]):
            levels = [1.0 if claim.level is None else claim.level for claim in self._claims]
            order = sorted(range(len(levels)), key=levels.__getitem__)
            num_left = len(levels) - order.index(number)
        return self._tests.significance / num_left

    def _boundaries_at(self, level: float) -> tuple[float, ...]:
        return tuple(
            self._boundaries.boundary(look, level) for look in range(len(self._rules.looks))
        )

    def _outcome(self, claim: _Claim, p: float | None, num_done: int) -> Outcome:
        if not claim.is_testable:
            return "not tested"
        if self._is_rejected(p):
            return min(claim.levels, key=claim.levels.__getitem__)
        if claim.is_given_up:
            return "given up"
        return "open" if num_done < len(self._rules.looks) else "undecided"

    def _comparison_state(self, number: int, item: _Evidence) -> ComparisonState:
        levels = [claim.level for claim in self._claims]
        p = None
        if self._claims[number].is_testable and item.looks:
            levels[number] = min(item.shown, item.opposite)
            p = holm(levels)[number]
        n = 0 if item.test is None else item.test.n
        return ComparisonState(item.comparison, tuple(item.looks), n, item.test, p, item.is_decided)


class _Fixed(_Replay):
    """A fixed list of seeds: one look at the pairs that exist, whose level is the p value."""

    def run(self, at_most: int | None) -> Looks:
        for claim in self._claims:
            for item in claim.evidence:
                row, base = (
                    {
                        replicate: value
                        for replicate in range(self._tests.num_seeds[cell])
                        if (value := self._value(cell, replicate, item.comparison.metric))
                        is not None
                    }
                    for cell in self._cells(item.comparison)
                )
                test = paired(row, base)
                if test is not None:
                    item.add(test, lambda p: p, self._tests.margin)
                    claim.n = max(claim.n, test.n)
            claim.num_looks = 1
        self._correct()
        level = self._tests.significance / max(self._num_unrejected(), 1)
        for claim in self._claims:
            for item in claim.evidence:
                item.is_decided = item.shown <= level
        return self._state(1, self._tests.num_seeds, self._tests.num_seeds)

    def _boundaries_at(self, level: float) -> tuple[float, ...]:
        return (level,)

    def _value(self, cell: int, replicate: int, metric: str) -> float | None:
        value = (self._results(cell, replicate) or {}).get(metric)
        return None if value is None or not math.isfinite(value) else float(value)

    def _outcome(self, claim: _Claim, p: float | None, num_done: int) -> Outcome:
        if p is None:
            return "not tested"
        if self._is_rejected(p):
            return min(claim.levels, key=claim.levels.__getitem__)
        return "undecided"


def _equivalence_p(test: Paired, margin: float) -> float:
    """P value at which the two-sided interval of the difference just fits into the margin."""
    if not test.sd:
        # No spread: as for the test of a difference, the exact sign-flip test.
        return float(2.0 ** (1 - test.n))
    room = (margin - abs(test.difference)) / (test.sd / math.sqrt(test.n))
    return float(2 * special.stdtr(test.n - 1, -room))


def _is_futile(test: Paired | None, futility: Futility, target: float) -> bool:
    """Whether an upper bound of the effect lies below ``target``, both in standard deviations."""
    if test is None or (test.effect_size is None and test.difference):
        return False
    effect = abs(test.effect_size or 0.0)
    error = math.sqrt(1 / test.n + effect * effect / (2 * test.n))
    return effect + float(special.ndtri(futility.confidence)) * error < target
