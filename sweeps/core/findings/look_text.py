"""What looks have decided, as text, for the progress of a run and for ``status``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sweeps.core.findings.look_states import ClaimState, Looks, Outcome

_WORDS: dict[Outcome, str] = {
    "shown": "shown",
    "opposite": "shown with the opposite sign",
    "no difference": "no difference",
    "given up": "given up",
    "undecided": "not decided",
    "open": "open",
    "not tested": "not tested",
}
"""Outcomes as verbs of a sentence about a claim."""
_MOST_NAMED = 6
"""Claims that a sentence about a look names: it stays a line that one can read."""
_MOST_LINES = 40
"""Claims that get a line each; more are counted."""


def look_sentence(before: Looks, after: Looks, looks: Sequence[int]) -> str:
    """Say in a line what a look decided.

    Args:
        before: The state before the look.
        after: The state after it.
        looks: Numbers of seeds at the looks of the study.

    >>> from sweeps.core.findings.look_states import Looks
    >>> nothing = Looks((), 0, (), 0, ()), Looks((), 1, (), 0, ())
    >>> look_sentence(*nothing, (3, 5))
    'Look 1 of 2 (3 seeds): no claim goes on.'
    """
    decided = [
        claim
        for claim, earlier in zip(after.claims, before.claims, strict=True)
        if earlier.outcome == "open" and claim.outcome != "open"
    ]
    named = [f"{claim.claim.name!r} {_outcome_text(claim)}" for claim in decided[:_MOST_NAMED]]
    if len(decided) > _MOST_NAMED:
        named.append(f"{len(decided) - _MOST_NAMED} more decided")
    num_open = sum(claim.outcome == "open" for claim in after.claims)
    going = {0: "no claim goes on", 1: "1 claim goes on"}.get(num_open, f"{num_open} claims go on")
    return f"{_position(after.num_done, looks)}: {'; '.join([*named, going])}."


def _position(num_done: int, looks: Sequence[int]) -> str:
    """Name a look by its number and seeds, such as ``Look 2 of 4 (5 seeds)``."""
    return f"Look {num_done} of {len(looks)} ({looks[num_done - 1]} seeds)"


def claim_lines(looks: Looks, numbers: Sequence[int]) -> list[str]:
    """Describe the present state of the looks, and that of each claim.

    Args:
        looks: The state.
        numbers: Numbers of seeds at the looks of the study.
    """
    done = f"{_position(looks.num_done, numbers)} is over" if looks.num_done else "No look is over"
    following = (
        f"the next one is after {numbers[looks.num_done]} seeds"
        if looks.is_open
        else "no claim is open"
    )
    claims = [f"  {_claim_line(claim, numbers, looks.num_done)}" for claim in looks.claims]
    if len(claims) > _MOST_LINES:
        counts = Counter(_WORDS[claim.outcome] for claim in looks.claims)
        claims = ["  Claims: " + ", ".join(f"{n} {words}" for words, n in counts.items()) + "."]
    return [f"{done}; {following}.", *claims]


def _claim_line(claim: ClaimState, numbers: Sequence[int], num_done: int) -> str:
    evidence = "" if claim.p is None else f", p = {claim.p:.2g} after correction"
    after = f" after {claim.n} seeds" if claim.n else ""
    tests = "each t test" if len(claim.comparisons) > 1 else "a t test"
    following = (
        f"; it needs p <= {claim.boundary:.2g} in {tests} with {numbers[num_done]} seeds"
        if claim.outcome == "open"
        else ""
    )
    return f"{claim.claim.name}: {_WORDS[claim.outcome]}{after}{evidence}{following}"


def _outcome_text(claim: ClaimState) -> str:
    words = _WORDS[claim.outcome]
    return words if claim.p is None else f"{words} (p = {claim.p:.2g})"
