"""What looks have decided, in words: few claims are named, many are counted."""

import pytest

from sweeps.core.design import claims
from sweeps.core.findings.look_states import ClaimState, Looks
from sweeps.core.findings.look_text import claim_lines, look_sentence


def looks(num_done, *outcomes, p=0.003, n=3):
    states = tuple(
        ClaimState(
            claims.TestedClaim(
                0, f"claim {number}", (claims.Comparison(1, "val/cam_miou", 1),) * (number + 1)
            ),
            outcome,
            p,
            n,
            num_done,
            (0.0012, 0.0012),
            (None,) * (number + 1),
        )
        for number, outcome in enumerate(outcomes)
    )
    return Looks(states, num_done, (3,), 3, (5,))


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (("open", "open"), "2 claims go on."),
        (("shown", "open"), "'claim 0' shown (p = 0.003); 1 claim goes on."),
        (
            ("opposite", "no difference"),
            "'claim 0' shown with the opposite sign (p = 0.003); 'claim 1' no difference "
            "(p = 0.003); no claim goes on.",
        ),
    ],
)
def test_a_look_names_the_claims_that_it_decided(outcomes, said):
    assert look_sentence(looks(0, "open", "open"), looks(1, *outcomes), (3, 5)) == (
        f"Look 1 of 2 (3 seeds): {said}"
    )


def test_a_claim_that_was_decided_before_is_not_named_again():
    before, after = looks(1, "shown", "open"), looks(2, "shown", "undecided", p=None)
    assert look_sentence(before, after, (3, 5)) == (
        "Look 2 of 2 (5 seeds): 'claim 1' not decided; no claim goes on."
    )


def test_a_line_names_six_claims_and_counts_the_others():
    said = look_sentence(looks(0, *["open"] * 9), looks(1, *["given up"] * 8, "open"), (3, 5))
    assert said.count("given up") == 6
    assert said.endswith("; 2 more decided; 1 claim goes on.")


def test_the_state_has_a_line_for_each_claim():
    assert claim_lines(looks(1, "shown", "open"), (3, 5)) == [
        "Look 1 of 2 (3 seeds) is over; the next one is after 5 seeds.",
        "  claim 0: shown after 3 seeds, p = 0.003 after correction",
        "  claim 1: open after 3 seeds, p = 0.003 after correction; it needs p <= 0.0012 in each "
        "t test with 5 seeds",
    ]
    assert claim_lines(looks(0, "open", p=None, n=0), (3, 5)) == [
        "No look is over; the next one is after 3 seeds.",
        "  claim 0: open; it needs p <= 0.0012 in a t test with 3 seeds",
    ]
    assert claim_lines(looks(2, "undecided", p=None), (3, 5))[0] == (
        "Look 2 of 2 (5 seeds) is over; no claim is open."
    )


def test_many_claims_are_counted():
    state = looks(1, *["open"] * 30, *["shown"] * 20)
    assert claim_lines(state, (3, 5))[1:] == ["  Claims: 30 open, 20 shown."]
