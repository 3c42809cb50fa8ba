"""The state of a study's looks: claims, comparisons, and the seeds that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sweeps.core.design.claims import Comparison, TestedClaim
from sweeps.core.statistics.paired import Paired

Outcome = Literal[
    "shown", "opposite", "no difference", "given up", "undecided", "open", "not tested"
]
"""Outcome of a claim.

``shown``: every comparison has the claimed sign, significantly; a claim without a direction is
shown by a difference of either sign. ``opposite``: a comparison has the opposite sign,
significantly. ``no difference``: all differences lie within the margin. ``given up``: futile.
``undecided``: all looks are over. ``not tested``: a training diverged, or has too few seeds.
"""


@dataclass(frozen=True, slots=True)
class PastLook:
    """A comparison at one of its looks.

    Attributes:
        n: Number of pairs.
        difference: Mean of the paired differences.
        p: P value of the t test of this look alone, two-sided.
    """

    n: int
    difference: float
    p: float


@dataclass(frozen=True, slots=True)
class ComparisonState:
    """A comparison after its last look.

    Attributes:
        comparison: The comparison.
        looks: Its looks so far, the first one first.
        n: Number of pairs at its last look; 0 before its first.
        test: Paired difference at that look, with the repeated confidence interval; ``None`` before
            its first look.
        p: Sequential p value after Holm's correction, as if its claim had no other comparison;
            ``None`` where its claim is not tested.
        is_decided: Whether it has crossed the boundary of its claim, in the claimed direction.
    """

    comparison: Comparison
    looks: tuple[PastLook, ...]
    n: int
    test: Paired | None
    p: float | None
    is_decided: bool


@dataclass(frozen=True, slots=True)
class ClaimState:
    """A claim after its last look.

    Attributes:
        claim: The claim.
        outcome: The outcome; ``open`` while the study goes on for it.
        p: Sequential p value after Holm's correction; ``None`` where nothing could be tested.
        n: Number of seeds at its last look; 0 before its first.
        num_looks: Number of its looks so far.
        boundaries: P value at or below which a comparison of the claim crosses, for all looks of
            the study, past and to come. They are those of the claim's present level: significance
            divided by the number of claims that are left in its step of Holm's correction.
        comparisons: Its comparisons.
    """

    claim: TestedClaim
    outcome: Outcome
    p: float | None
    n: int
    num_looks: int
    boundaries: tuple[float, ...]
    comparisons: tuple[ComparisonState, ...]

    @property
    def boundary(self) -> float:
        """The boundary of the next look while the claim is open, else of its last look."""
        return self.boundaries[self.num_looks if self.outcome == "open" else self.num_looks - 1]


@dataclass(frozen=True, slots=True)
class Looks:
    """State of a study's looks.

    Attributes:
        claims: The claims.
        num_done: Number of looks that are over.
        num_seeds: Number of seeds, by configuration, that the study needs now.
        common: Number of seeds that every configuration has, apart from that of the A/A row. What
            compares more than one claim uses these seeds only.
        next_seeds: Number of seeds by configuration if every open claim stays open at the present
            look. It equals ``num_seeds`` after the last look.
    """

    claims: tuple[ClaimState, ...]
    num_done: int
    num_seeds: tuple[int, ...]
    common: int
    next_seeds: tuple[int, ...]

    @property
    def is_open(self) -> bool:
        """Whether a claim is open, so that another look follows."""
        return any(claim.outcome == "open" for claim in self.claims)

    @property
    def comparisons(self) -> dict[tuple[int, str], ComparisonState]:
        """Comparisons by row number and metric key.

        Where several claims have a comparison, it is that of the claim with the most seeds.
        """
        return {place: state for place, (_, state) in self._places.items()}

    @property
    def claim_of(self) -> dict[tuple[int, str], ClaimState]:
        """The claim of each comparison of :attr:`comparisons`."""
        return {place: claim for place, (claim, _) in self._places.items()}

    @property
    def _places(self) -> dict[tuple[int, str], tuple[ClaimState, ComparisonState]]:
        states: dict[tuple[int, str], tuple[ClaimState, ComparisonState]] = {}
        for claim in self.claims:
            for state in claim.comparisons:
                place = state.comparison.row, state.comparison.metric
                if place not in states or states[place][1].n < state.n:
                    states[place] = claim, state
        return states
