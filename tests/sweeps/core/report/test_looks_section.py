"""Reports of sequential studies: claims look by look, seeds, captions, remarks and columns."""

import csv
import io
import re

import pytest
from scipy import stats

from sweeps.core.design.paper import Claim, Paper, PaperRow
from sweeps.core.design.seeds import Futility, Sequential
from sweeps.core.design.study import BASE_AGAIN
from sweeps.core.findings.looks import looks_of
from sweeps.core.report.page import page
from sweeps.core.report.report import make_report
from sweeps.core.report.section import ReportForms
from sweeps.core.report.table import table_csv
from sweeps.core.report.text_grid import TextGrid
from sweeps.core.statistics.paired import detectable_effect
from sweeps.core.store.study_record import StudyRecord
from tests.sweeps.core.records import M, make_study

WOBBLE = (0.0, 0.01, -0.01, 0.01, -0.01, 0.0, 0.01, -0.01, 0.01, 0.0)
BASE = [0.6 + 0.01 * (seed % 4) for seed in range(10)]


def beside(difference: float, scatter: float) -> list[float]:
    return [value + difference + scatter * one for value, one in zip(BASE, WOBBLE, strict=True)]


ROWS = {
    "#10": BASE,
    "#8": beside(-0.1, 0.1),
    "#9": beside(0.001, 1.0),
    "#11": beside(-0.2, 0.1),
    "none & <b>": beside(-0.001, 1.0),
    BASE_AGAIN: [0.61, 0.6, 0.62],
}
CLAIMS = (
    Claim("rises to #10", M, "#10", ("#8",), 7.0, "large"),
    Claim("best at #10", M, "#10", ("#9", "#11"), 3.0, "small"),
)
PAPER = Paper(
    "Table 5",
    "VOC",
    tuple(PaperRow(label, {M: 0.7}) for label in ("#10", "#8", "#9", "#11")),
    CLAIMS,
)


def study(finished: int = 10, **options: object) -> StudyRecord:
    waiting = {
        (label, seed): "waiting"
        for label, values in ROWS.items()
        for seed in range(min(finished, len(values)), len(values))
    }
    states = waiting | options.pop("states", {})
    return make_study(ROWS, paper=PAPER, states=states, **{"sequential": Sequential(), **options})


def grids(report: ReportForms) -> dict[str, TextGrid]:
    return {grid.title: grid for grid in report.cards.grids("body")}


def texts(grid: TextGrid) -> list[list[str]]:
    return [[cell.text for cell in line] for line in grid.lines]


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_claims_look_by_look():
    """Half way: the first claim is shown at three seeds, the second waits for its second look."""
    report = make_report(study(finished=4))
    eight, nine = (
        [value - base for value, base in zip(ROWS[label], BASE, strict=True)][:3]
        for label in ("#8", "#9")
    )
    p = stats.ttest_1samp(eight, 0).pvalue
    lines = texts(grids(report)["Claims, look by look"])
    assert [line[:4] for line in lines] == [
        ["rises to #10", "shown", "1 of 4", "3"],
        ["best at #10", "open", "1 of 4", "3"],
        ["", "", "", ""],
    ]
    # Holm's correction over two claims, after a part of 0.09 of the level.
    assert lines[0][4] == f"{2 * p / 0.09:.3f}"
    # The boundary of a shown claim is that of its look, of an open one that of its next look.
    second = looks_of(study(finished=4)).claims[1].boundaries[1]
    assert (lines[0][5], lines[1][5]) == (f"{0.025 * 0.09:.2g}", f"{second:.2g}")
    assert [line[6] for line in lines] == ["#8, M", "#9, M", "#11, M"]
    assert lines[1][7] == f"{stats.ttest_1samp(nine, 0).pvalue:.3f}"
    assert lines[0][8] == "-10.00"
    half = stats.t.ppf(1 - 0.05 * 0.09 / 2, 2) * stats.sem(eight)
    assert lines[0][9] == f"{100 * (-0.1 - half):+.2f} to {100 * (-0.1 + half):+.2f}"


def test_seeds_of_each_row():
    report = make_report(study(finished=4))
    grid = grids(report)["Seeds of each row"]
    assert texts(grid) == [
        ["#10", "4", "5", "10", "1"],
        ["#8", "3", "3", "10", "0"],
        ["#9", "4", "5", "10", "1"],
        # Its comparison of the open claim has crossed already.
        ["#11", "3", "3", "10", "0"],
        ["none & <b>", "3", "3", "3", "0"],
        [BASE_AGAIN, "3", "3", "3", "0"],
    ]
    assert grid.notes == (
        "The study needs 22 of at most 46 trials so far; 1 of 2 claims are open.",
    )


def test_every_form_has_the_claims():
    report = make_report(study(finished=4))
    html = page(report.source, report.cards, "now").html
    for form in (report.terminal, report.markdown, report.latex, html):
        assert "Claims, look by look" in form
        assert "Seeds of each row" in form
        assert "22 of at most 46 trials" in flat(form)
    (shown,) = re.findall(r'<section id="looks">(.*?)</section>', html, re.DOTALL)
    assert shown.count("<svg") == 2
    assert "rises to #10: p values by number of seeds, boundary" in shown
    assert '<span class="chip reproduced">shown</span>' in shown
    assert '<span class="chip running">open</span>' in shown
    assert "none &amp; &lt;b&gt;" in shown
    assert "<b>" not in shown
    assert "up to 10 seeds each" in html
    assert "0 to 9 at most, claims are tested after 3, 5, 7, 10 seeds" in html


def test_before_the_first_look_there_is_a_boundary_and_no_p():
    report = make_report(study(finished=2))
    lines = texts(grids(report)["Claims, look by look"])
    assert lines[0][1:6] == ["open", "0 of 4", "0", "-", f"{0.025 * 0.09:.2g}"]
    assert lines[0][7:] == ["-", "-", "-"]
    page(report.source, report.cards, "now")


@pytest.mark.parametrize(
    ("options", "outcome", "remark"),
    [
        ({"finished": 4}, "open", "open"),
        ({}, "given up", "not decidable"),
        ({"sequential": Sequential(futility=None)}, "undecided at the cap", "not decidable"),
        ({"states": {("#9", 1): "diverged"}}, "not tested", "not tested"),
    ],
)
def test_remarks_have_the_outcome_in_the_place_of_underpowered(
    options: dict[str, object], outcome: str, remark: str
):
    report = make_report(study(**options))
    assert grids(report)["Claims, look by look"].lines[1][1].text == outcome
    assert remark in report.terminal
    for form in (report.terminal, report.markdown, report.latex):
        assert "nderpowered" not in form


def test_a_claim_that_is_not_tested_says_why():
    report = make_report(study(states={("#9", 1): "diverged"}))
    notes = grids(report)["Claims, look by look"].notes
    assert notes[1] == "best at #10: not tested, because #9, seed 1 diverged."


def test_captions_say_what_is_tested():
    said = flat(make_report(study()).terminal)
    for sentence in (
        "The study tests 2 claims after 3, 5, 7 and 10 seeds.",
        "over all claims and looks, is at most 5 %",
        "a claim has spent (n / 10)^2 of its level",
        "Bonferroni's correction over the comparisons of its claim",
        "over the first 3 seeds, which all rows have",
        "images use the first 3 seeds of each row, too",
        "From 5 seeds on, a claim is given up if the upper 90 % bound",
        "10 seeds show with 50 % power",
        "A claim that needs a training that diverged is not tested.",
        "With 10 seeds, the cap, and 2 claims this study detects at best, at 80 % power, an effect "
        f"of {detectable_effect(10, 2, 0.05, 0.8):.1f} standard deviations",
    ):
        assert sentence in said
    assert "No difference" not in said
    rules = Sequential(
        looks=(3, 6), spending=1.5, futility=Futility(0.4, 0.8, 6), diverged_value=0.0
    )
    said = flat(make_report(study(sequential=rules, margin=0.01, significance=0.1)).terminal)
    for sentence in (
        "tests 2 claims after 3 and 6 seeds",
        "is at most 10 %",
        "(n / 6)^1.5",
        "From 6 seeds on",
        "the upper 80 % bound",
        "6 seeds show with 40 % power",
        "smaller than 1 point, with their repeated intervals",
        "In tests, a training that diverged has the value 0; means leave it out.",
    ):
        assert sentence in said
    said = make_report(study(sequential=Sequential(looks=(5,), futility=None))).terminal
    assert "No claim is given up before the last look." in said
    assert "tests 2 claims after 5 seeds" in said


def test_columns_of_the_csv():
    report = make_report(study(finished=4))
    lines = {
        line["row"]: line for line in csv.DictReader(io.StringIO(table_csv(report.source.table)))
    }
    names = ("planned", "n", "cap", "looks", "outcome")
    found = {label: [line[name] for name in names] for label, line in lines.items()}
    assert found == {
        "#10": ["5", "4", "10", "", ""],
        "#8": ["3", "3", "10", "1", "shown"],
        "#9": ["5", "4", "10", "1", "open"],
        "#11": ["3", "3", "10", "1", "open"],
        "none & <b>": ["3", "3", "10", "", ""],
        BASE_AGAIN: ["3", "3", "3", "", ""],
    }
    assert lines["#8"]["boundary"] == f"{0.025 * 0.09:.6f}"


def test_a_fixed_list_of_seeds_has_no_looks():
    report = make_report(make_study({label: values[:3] for label, values in ROWS.items()}))
    assert "looks" not in [section.name for section, _ in report.cards.sections]
    html = page(report.source, report.cards, "now").html
    for form in (report.terminal, report.markdown, report.latex, html):
        assert "look by look" not in form
    assert "underpowered" in report.terminal
