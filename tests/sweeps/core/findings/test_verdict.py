import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))
from records import SEG, M, make_study

from sweeps.core.design.designs import Block
from sweeps.core.design.paper import Claim, Paper, PaperRow
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import BASE_AGAIN, Metric
from sweeps.core.findings import verdict as verdicts
from sweeps.core.findings.analysis import analyse
from sweeps.core.findings.looks import needed_trials
from sweeps.core.findings.verdict import judge
from sweeps.core.store.budget_record import BudgetStop

PAPER = Paper(
    source="A table",
    setting="in words",
    rows=(
        PaperRow("#8", {M: 0.635}),
        PaperRow("#10", {M: 0.705}, default=True),
        PaperRow("#11", {M: 0.431}),
    ),
    claims=(Claim("rises to #10", M, "#10", ("#8", "#11"), by=7.0, size="large"),),
)
OURS = {"data": "voc", "recipe": "voc_deit_b"}
BASE = [0.700, 0.706, 0.703, 0.709, 0.701]
AS_PUBLISHED = {
    "#10": BASE,
    "#8": [0.630, 0.634, 0.639, 0.640, 0.628],
    "#11": [0.44, 0.43, 0.42, 0.43, 0.44],
}


def above(difference, scatter=0.001):
    """Values with a paired difference to ``BASE`` of that mean and about that scatter."""
    wobble = np.array([-1.2, 0.4, 1.1, -0.8, 0.5]) * scatter
    return list(np.array(BASE) + difference + wobble)


def verdict(values, paper=PAPER, changes_for_all=None, **options):
    study = make_study(values, paper=paper, **options)
    study = study.model_copy(update={"changes": changes_for_all or {}})
    return judge(study, analyse(study))


def claim(values, **options):
    (found,) = verdict(values, **options).claims
    return found


def test_published_numbers_are_held_against_one_more_seed_of_ours():
    off = [0.600, 0.604, 0.602, 0.606, 0.601]
    found = {row.row: row for row in verdict({**AS_PUBLISHED, "#11": off}, **OURS).rows}
    assert [found[row].text for row in (0, 1, 2)] == ["reproduced", "reproduced", "off by +17.2"]
    assert found[2].off_by == pytest.approx(np.mean(off) - 0.431)
    # The end of the interval, by scipy: a paper just inside it and one just outside.
    end = stats.t.interval(0.95, 4, np.mean(BASE), np.std(BASE, ddof=1) * np.sqrt(1 + 1 / 5))[1]
    for published, outcome in ((end - 1e-6, "reproduced"), (end + 1e-6, "off")):
        paper = Paper("", "", (PaperRow("#10", {M: published}),))
        assert verdict({"#10": BASE}, paper=paper, **OURS).rows[0].outcome == outcome


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([0.705], "too few seeds"),
        ([0.705, 0.705], "too few seeds"),
        ([0.6, 0.8], "too few seeds"),
        ([0.705] * 3, "reproduced"),
        ([0.7] * 3, "off by -0.5"),
    ],
)
def test_fewer_than_three_seeds_judge_no_number_and_without_spread_it_has_to_be_equal(
    values, outcome
):
    paper = Paper("", "", (PaperRow("#10", {M: 0.705}),))
    assert verdict({"#10": values}, paper=paper, **OURS).rows[0].text == outcome


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"data": "voc"},
        {"recipe": "voc_deit_b"},
        {**OURS, "changes_for_all": {"num_steps": 1000}},
        {**OURS, "changes_for_all": {"backbone.weights": None}},
    ],
)
def test_in_another_setting_no_number_is_tested_and_claims_are_of_direction(setting):
    found = verdict(AS_PUBLISHED, **setting)
    assert {row.text for row in found.rows} == {"not tested at this scale"}
    assert [claim.outcome for claim in found.claims] == ["direction confirmed"]
    assert "only confirm the direction" in found.claims[0].sentence
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("images", "outcome"), [(1449, "reproduced"), (461, "direction confirmed")]
)
def test_a_part_of_the_papers_images_is_another_setting(monkeypatch, images, outcome):
    monkeypatch.setattr(verdicts, "num_images", lambda trials: images)
    found = verdict(AS_PUBLISHED, **OURS)
    assert found.claims[0].outcome == outcome
    assert {row.text for row in found.rows} == {
        "reproduced" if images == 1449 else "not tested at this scale"
    }
    assert ("voc_deit_b on 461 images of voc, not" in found.claims[0].sentence) == (images == 461)


def test_a_row_without_a_result_is_not_said_to_be_of_another_scale():
    states = {("#8", replicate): "failed" for replicate in range(5)}
    found = {row.row: row.text for row in verdict(AS_PUBLISHED, states=states, **OURS).rows}
    assert found == {0: "reproduced", 1: "no result", 2: "reproduced"}


def test_where_files_lie_is_no_other_setting():
    found = verdict(AS_PUBLISHED, **OURS, changes_for_all={"backbone.weights": "deit.safetensors"})
    assert found.claims[0].outcome == "reproduced"


def test_a_claim_as_large_as_published_is_reproduced():
    found = claim(AS_PUBLISHED, **OURS)
    assert (found.text, found.off_by) == ("reproduced", None)
    assert "+7.0 over #8" in found.sentence
    assert "after Holm" in found.sentence


def test_a_claim_of_the_right_direction_that_is_smaller_is_off():
    found = claim({"#10": BASE, "#8": above(-0.03), "#11": above(-0.2)}, **OURS)
    assert found.outcome == "off"
    assert found.off_by == pytest.approx(0.03 - 0.07)
    assert found.text == "off by -4.0"


def test_a_claim_that_chance_may_have_made_is_underpowered():
    values = {"#10": BASE, "#8": above(-0.01, scatter=0.03), "#11": above(-0.2)}
    found = claim(values, **OURS)
    assert found.outcome == "underpowered"
    assert "2 of 2 point the claimed way" in found.sentence
    values["#11"] = above(+0.02, scatter=0.03)
    assert "1 of 2 points the claimed way" in claim(values, **OURS).sentence


def test_a_study_that_could_have_seen_a_difference_and_did_not_confirms_nothing():
    values = {"#10": BASE, "#8": above(-0.0005), "#11": above(-0.2)}
    other_setting = claim(values, smallest_effect=0.02)
    assert other_setting.outcome == "not confirmed"
    assert "not significant, in a study with the power to show 2.0" in other_setting.sentence
    found = claim(values, smallest_effect=0.02, **OURS)
    assert (found.outcome, found.off_by) == ("off", pytest.approx(0.0005 - 0.07))


@pytest.mark.parametrize(
    ("options", "outcome", "exit_code"),
    [
        ({"smallest_effect": 0.02}, "contradicted", 3),
        ({"smallest_effect": 0.02, **OURS}, "contradicted", 3),
        ({"smallest_effect": 0.02, "purpose": "direction"}, "underpowered", 0),
        ({"smallest_effect": 0.0001}, "underpowered", 0),
    ],
)
def test_only_a_study_that_can_answer_contradicts(options, outcome, exit_code):
    found = verdict({"#10": BASE, "#8": above(+0.03), "#11": above(-0.2)}, **options)
    assert found.claims[0].outcome == outcome
    assert "in the opposite direction" in found.claims[0].sentence
    # A direction found in spite of few seeds was not too small to be seen: the study just did not
    # plan to contradict.
    small, direction = "too small to contradict", "was not planned to contradict"
    said = {text for text in (small, direction) if text in found.claims[0].sentence}
    expected = direction if options.get("purpose") == "direction" else small
    assert said == (set() if outcome == "contradicted" else {expected})
    assert found.exit_code == exit_code


def test_a_lower_loss_is_better():
    rows = (PaperRow("#10", {M: 0.1}), PaperRow("#8", {M: 0.2}))
    paper = Paper("", "", rows, (Claim("less", M, "#10", ("#8",), by=1.0, size="large"),))
    metrics = (Metric(M, "loss", higher_is_better=False),)
    assert (
        claim({"#10": BASE, "#8": above(+0.03)}, paper=paper, metrics=metrics).outcome
        == "direction confirmed"
    )
    contradicted = claim(
        {"#10": BASE, "#8": above(-0.03)}, paper=paper, metrics=metrics, smallest_effect=0.02
    )
    assert contradicted.outcome == "contradicted"


def test_a_row_compared_with_the_worse_one_counts_as_well():
    paper = Paper("", "", PAPER.rows, (Claim("rises", M, "#10", ("#8",), by=3.0, size="large"),))
    # The base is the worse row here, as on a ladder.
    assert claim({"#8": BASE, "#10": above(+0.03)}, paper=paper).outcome == "direction confirmed"


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        ({"#10": BASE, "#8": above(-0.07)}, {}, "no row corresponds to the paper's #11"),
        (
            {"#8": BASE, "#10": above(0.07), "#11": above(-0.2)},
            {},
            "#10 and #11 are not compared in this study",
        ),
        (
            AS_PUBLISHED,
            {"metrics": (Metric(SEG, "seg"),), "more": {M: AS_PUBLISHED}},
            "val/cam_miou is not compared in this block",
        ),
        (
            AS_PUBLISHED,
            {"states": {("#8", replicate): "failed" for replicate in range(5)}},
            "no pair of trials of #10 and #8 has finished",
        ),
    ],
)
def test_what_the_study_does_not_compare_is_not_tested(values, options, reason):
    found = claim(values, **options)
    assert (found.outcome, found.sentence) == ("not tested", f"Not tested: {reason}.")


def test_rows_with_published_twins_of_another_name_stand_in_for_them():
    values = {
        {"#8": "24 px", "#10": "32 px", "#11": "40 px"}[label]: row
        for label, row in AS_PUBLISHED.items()
    }
    beside = {"24 px": "#8", "32 px": "#10", "40 px": "#11"}
    found = claim(values, published=beside)
    assert found.outcome == "direction confirmed"
    assert "over 24 px" in found.sentence


def test_a_dagger_is_told_with_the_claim():
    found = claim(AS_PUBLISHED, amend={"#8": {"resources": {"world_size": 2}}})
    assert "† world size is 2, in #10 1" in found.sentence


@pytest.mark.parametrize("state", ["failed", "diverged", "waiting", "running"])
def test_a_trial_without_a_result_is_exit_code_4_even_beside_a_contradiction(state):
    values = {"#10": BASE, "#8": above(+0.03), "#11": above(-0.2), BASE_AGAIN: BASE}
    found = verdict(values, smallest_effect=0.02, states={(BASE_AGAIN, 4): state})
    assert found.claims[0].outcome == "contradicted"
    assert found.exit_code == 4
    assert "1 of 20 trials has no result" in found.sentence
    assert found.sentence.startswith("Of 1 claim of the paper: ")
    found = verdict(
        values, smallest_effect=0.02, states={(BASE_AGAIN, 4): state, (BASE_AGAIN, 3): state}
    )
    assert "2 of 20 trials have no result" in found.sentence


def test_a_study_without_a_paper_is_judged_by_its_trials():
    found = verdict(AS_PUBLISHED, paper=None)
    assert (found.rows, found.claims, found.exit_code) == ((), (), 0)


# Sequential studies: 10 seeds at most; the base is shown to be better, worse, or neither.
LOOKED = [0.700, 0.706, 0.703, 0.709, 0.701, 0.704, 0.707, 0.702, 0.708, 0.705]
WOBBLE = np.array([-1.2, 0.4, 1.1, -0.8, 0.5, -0.3, 0.9, -0.6, 0.2, -0.2])


def beside(difference, scatter=0.001):
    """Ten values with about that paired difference to ``LOOKED``."""
    return list(np.array(LOOKED) + difference + scatter * WOBBLE)


def looked(eight, eleven, finished=10, states=None, **options):
    """The verdict of a sequential study of which so many seeds have finished."""
    values = {"#10": LOOKED, "#8": eight, "#11": eleven}
    waiting = {(label, seed): "waiting" for label in values for seed in range(finished, 10)}
    study = make_study(
        values,
        paper=options.pop("paper", PAPER),
        states=waiting | (states or {}),
        **{"sequential": Sequential(), **options},
    )
    study = needed_trials(study)
    return judge(study, analyse(study))


def test_a_sequential_claim_that_is_shown():
    found = looked(beside(-0.07), beside(-0.27))
    (shown,) = found.claims
    assert (shown.outcome, found.exit_code) == ("direction confirmed", 0)
    # One claim: p is that of the first look, whose part of the level is 0.09.
    p = stats.ttest_rel(beside(-0.07)[:3], LOOKED[:3]).pvalue / 0.09
    assert f"+7.0 over #8 (p = {p:.2g} after Holm, n = 3)" in shown.sentence
    assert "+27.0 over #11" in shown.sentence
    assert found.sentence == "Of 1 claim of the paper: 1 direction confirmed."
    assert looked(beside(-0.08), beside(-0.27), **OURS).claims[0].outcome == "reproduced"
    # The repeated interval of the first look ends below the published 7 points.
    off = looked(beside(-0.03), beside(-0.27), **OURS).claims[0]
    assert off.text == "off by -4.0"


@pytest.mark.parametrize("purpose", ["effect", "direction"])
def test_a_sequential_claim_with_the_opposite_sign_is_contradicted(purpose):
    found = looked(beside(+0.05), beside(-0.27), purpose=purpose)
    assert (found.claims[0].outcome, found.exit_code) == ("contradicted", 3)
    assert "-5.0 over #8" in found.claims[0].sentence
    assert "significant in the opposite direction" in found.claims[0].sentence
    # Another setting cannot contradict the paper in general.
    assert "so the claim is contradicted for this setting alone." in found.claims[0].sentence


def test_a_sequential_claim_before_its_first_look_and_between_two_is_open():
    found = looked(beside(-0.07), beside(-0.27), finished=2)
    assert (found.claims[0].outcome, found.exit_code) == ("open", 4)
    assert found.claims[0].sentence == "Open: its first look is after 3 seeds."
    assert found.sentence.startswith("Of 1 claim of the paper: 1 open. 3 of 9 trials have no")
    found = looked(beside(-0.005, 0.01), beside(-0.27), finished=4)
    assert (found.claims[0].outcome, found.exit_code) == ("open", 4)
    assert "open after 3 of at most 10 seeds" in found.claims[0].sentence


def test_a_study_that_its_budget_has_stopped_is_complete_and_its_claims_stay_open():
    stop = BudgetStop(hours=10.0, look=1, used=6.0, needed=5.0)
    found = looked(beside(-0.005, 0.01), beside(-0.27), finished=3, stopped=stop)
    (claim,) = found.claims
    assert (claim.outcome, found.exit_code) == ("open", 0)
    end = "open after 3 of at most 10 seeds; stopped by the budget of 10 hours after look 1."
    assert end in claim.sentence
    assert found.sentence == f"Of 1 claim of the paper: 1 open. {stop.sentence}"
    # A later look took place, or a driver runs: the stop no longer holds.
    for fields in ({"stopped": dataclasses.replace(stop, look=2)}, {"running": True}):
        later = looked(
            beside(-0.005, 0.01), beside(-0.27), finished=3, **{"stopped": stop, **fields}
        )
        assert later.exit_code == 4
        assert "budget" not in later.sentence + later.claims[0].sentence


def test_a_sequential_claim_that_was_given_up_or_has_reached_the_cap_is_not_decidable():
    found = looked(beside(0.0, 0.01), beside(-0.27))
    assert (found.claims[0].outcome, found.exit_code) == ("not decidable", 0)
    assert (
        "given up after 5 seeds, because all 10 could hardly decide it" in found.claims[0].sentence
    )
    found = looked(beside(0.0, 0.01), beside(-0.27), sequential=Sequential(futility=None))
    assert (found.claims[0].outcome, found.exit_code) == ("not decidable", 0)
    assert "not decided after 10 seeds, the cap" in found.claims[0].sentence
    assert "underpowered" not in found.sentence


def test_a_sequential_claim_within_the_margin_is_no_difference():
    found = looked(beside(0.0, 0.0001), beside(0.0, 0.0001), margin=0.01)
    assert (found.claims[0].outcome, found.exit_code) == ("no difference", 0)
    assert "no difference larger than 1 point." in found.claims[0].sentence


def test_a_sequential_claim_with_a_diverged_training_is_not_tested():
    """Its other comparison has a significant difference, which decides nothing alone."""
    found = looked(beside(-0.07), beside(-0.27), states={("#8", 1): "diverged"})
    assert found.claims[0].sentence == "Not tested: #8, seed 1 diverged."
    assert found.exit_code == 4
    late = looked(beside(0.0, 0.01), beside(-0.27), states={("#10", 4): "diverged"})
    assert late.claims[0].sentence == "Not tested: #10, seed 4 diverged."


def test_a_diverged_training_with_a_declared_value_is_a_result():
    found = looked(
        beside(-0.07),
        beside(-0.27),
        states={("#11", 1): "diverged"},
        sequential=Sequential(futility=None, diverged_value=0.0),
    )
    assert found.exit_code == 0
    # 0 is far below the base, so it takes more seeds than without it.
    assert found.claims[0].outcome == "direction confirmed"
    assert re.search(r"over #11 \(p = [\d.]+ after Holm, n = (7|10)\)", found.claims[0].sentence)


def test_a_sequential_study_counts_the_differences_that_no_paper_claims():
    found = looked(beside(-0.07), beside(0.0, 0.01), paper=None)
    assert found.claims == ()
    assert found.sentence == (
        "The study tests no claim of the paper. Of 2 tested differences: 1 shown, 1 given up."
    )


def test_the_same_claim_in_two_blocks_has_two_verdicts():
    values = {"#10": LOOKED, "#8": beside(-0.07), "#11": beside(-0.27), "other": beside(+0.05)}
    blocks = [
        (Block("(a)", (), ("method.aux_block",), (M,), PAPER), ["#10", "#8", "#11"]),
        (Block("(b)", (), ("method.aux_block",), (M,), PAPER), ["#10", "other", "#11"]),
    ]
    study = needed_trials(
        make_study(
            values, blocks=blocks, published={"other": "#8"}, sequential=Sequential(futility=None)
        )
    )
    found = judge(study, analyse(study))
    assert [one.outcome for one in found.claims] == ["direction confirmed", "contradicted"]
