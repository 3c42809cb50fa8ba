"""The paper's numbers against what its authors' own logs and text say of them, and its claims
against its numbers.
"""

import dataclasses

import pytest

from sweeps.core.design.paper import (
    AUX_CAM_MIOU,
    CAM_MIOU,
    FIGURE_2,
    SEG_MIOU,
    TABLE_4,
    TABLE_5A,
    TABLE_5B,
    TABLE_5C,
    Claim,
)

TABLES = (TABLE_4, TABLE_5A, TABLE_5B, TABLE_5C)
CLAIMS = [(paper, claim) for paper in TABLES for claim in paper.claims]


@pytest.mark.parametrize("paper", TABLES, ids=lambda paper: paper.source)
def test_the_default_row_of_every_table_is_the_authors_log(paper):
    (default,) = (row for row in paper.rows if row.default)
    # Last evaluation of the published DeiT-B log: 70.487, 62.472, 68.097.
    logged = {CAM_MIOU: 0.70487, AUX_CAM_MIOU: 0.62472, SEG_MIOU: 0.68097}
    assert default.metrics == {key: round(logged[key], 3) for key in default.metrics}
    assert default.metrics.keys() >= {CAM_MIOU, SEG_MIOU}


@pytest.mark.parametrize("paper", TABLES, ids=lambda paper: paper.source)
def test_the_default_row_has_the_best_cam(paper):
    assert max(paper.rows, key=lambda row: row.metrics[CAM_MIOU]).default


@pytest.mark.parametrize(
    ("paper", "printed"),
    [
        (
            TABLE_4,
            [
                ("cls", [27.8]),
                ("+ aux cls", [27.9, 53.8]),
                ("+ PTC", [62.5, 57.8]),
                ("+ CTC", [67.2, 60.7]),
                ("+ seg", [69.9, 61.2, 66.6]),
                ("+ reg", [70.5, 62.5, 68.1]),
            ],
        ),
        (
            TABLE_5A,
            [
                ("#8", [63.5, 48.1, 60.5]),
                ("#9", [67.6, 55.1, 64.8]),
                ("#10", [70.5, 62.5, 68.1]),
                ("#11", [43.1, 45.2, 40.3]),
            ],
        ),
        (
            TABLE_5B,
            [
                ("64 px", [68.1, 65.5]),
                ("80 px", [69.3, 67.3]),
                ("96 px", [70.5, 68.1]),
                ("112 px", [69.4, 67]),
            ],
        ),
        (
            TABLE_5C,
            [
                ("0", [69.2, 66.9]),
                ("0.1", [69.0, 67.1]),
                ("0.9", [70.5, 68.1]),
                ("0.99", [68.7, 66.6]),
            ],
        ),
    ],
    ids=["4", "5a", "5b", "5c"],
)
def test_tables_as_printed(paper, printed):
    assert [
        (row.label, [round(100 * value, 1) for value in row.metrics.values()]) for row in paper.rows
    ] == printed


def test_table_5_gives_no_auxiliary_cam_for_crops_and_decays():
    assert all(
        row.metrics.keys() == {CAM_MIOU, SEG_MIOU}
        for paper in (TABLE_5B, TABLE_5C)
        for row in paper.rows
    )


def test_there_are_nine_claims():
    assert [(claim.better, len(claim.than), claim.size) for _, claim in CLAIMS] == [
        ("+ PTC", 1, "large"),
        ("+ CTC", 1, "large"),
        ("+ seg", 1, "small"),
        ("+ reg", 1, "small"),
        ("#10", 1, "large"),
        ("#10", 1, "large"),
        ("#10", 3, "large"),
        ("96 px", 3, "small"),
        ("0.9", 3, "small"),
    ]


@pytest.mark.parametrize(("paper", "claim"), CLAIMS, ids=[claim.name for _, claim in CLAIMS])
def test_a_claim_is_what_the_table_says_to_the_decimal(paper, claim):
    values = {
        row.label: 100 * row.metrics[claim.metric]
        for row in paper.rows
        if claim.metric in row.metrics
    }
    smallest = min(values[claim.better] - values[other] for other in claim.than)
    assert smallest == pytest.approx(claim.by, abs=1e-9)
    # A rung of Table 4 is compared with the rung above, a row of Table 5 with all others.
    above = list(values)[: list(values).index(claim.better) + 1] if paper is TABLE_4 else values
    assert max(above, key=values.get) == claim.better


def test_a_claim_about_what_is_not_printed_is_refused():
    for claim in (
        Claim("x", AUX_CAM_MIOU, "96 px", ("64 px",), 1.0, "small"),
        Claim("x", CAM_MIOU, "96 px", ("65 px",), 1.0, "small"),
    ):
        with pytest.raises(ValueError, match=r"x needs .* which .*Table 5 \(b\).* lacks"):
            dataclasses.replace(TABLE_5B, claims=(claim,))


def test_figure_2_has_the_twelve_blocks_and_ptc_lowers_the_last():
    assert [len(values) for values in FIGURE_2.values()] == [12, 12]
    assert FIGURE_2["ToCo"][-1] < FIGURE_2["without PTC"][-1]
