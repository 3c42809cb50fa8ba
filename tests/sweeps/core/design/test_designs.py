"""Designs: the rows they make, what each is compared with, and what they refuse; by hand."""

import itertools

import pytest

from sweeps.core.design.designs import (
    Block,
    Declared,
    Design,
    Grid,
    Ladder,
    LeaveOneOut,
    OneFactor,
    Row,
    SideBySide,
)
from sweeps.core.design.factors import Component, Factor
from sweeps.core.design.fractions import Fraction
from sweeps.core.design.paper import TABLE_5A

BLOCK = Factor("method.aux_block", (7, 9), 9, ("#8", "#10"), "block")
TAU = Factor("method.temperature", (0.1, 0.5, 1.0), 0.5, title="tau")
SCORE = Factor("evaluate.background_threshold", (0.5, 0.4))
PTC = Component("PTC", {"method.ptc.weight": 0.0})
SEG = Component("seg", {"method.segmentation.weight": 0.0, "method.energy.weight": 0.0})


def table(design):
    return [
        [(row.label, dict(row.changes), row.versus) for row in block.rows]
        for block in design.blocks()
    ]


def test_a_grid_has_all_combinations_against_that_of_the_bases():
    assert table(Grid((BLOCK, TAU))) == [
        [
            ("#8, tau 0.1", {"method.aux_block": 7, "method.temperature": 0.1}, 4),
            ("#8, tau 0.5", {"method.aux_block": 7, "method.temperature": 0.5}, 4),
            ("#8, tau 1.0", {"method.aux_block": 7, "method.temperature": 1.0}, 4),
            ("#10, tau 0.1", {"method.aux_block": 9, "method.temperature": 0.1}, 4),
            ("#10, tau 0.5", {"method.aux_block": 9, "method.temperature": 0.5}, None),
            ("#10, tau 1.0", {"method.aux_block": 9, "method.temperature": 1.0}, 4),
        ]
    ]
    (block,) = Grid((BLOCK, TAU)).blocks()
    assert (block.title, block.factors) == (
        "block x tau",
        ("method.aux_block", "method.temperature"),
    )


def test_a_grid_without_factors_is_the_base_alone():
    assert table(Grid()) == [[("base", {}, None)]]


def test_one_factor_at_a_time_has_the_same_base_in_every_block():
    design = OneFactor((BLOCK, TAU))
    assert table(design) == [
        [
            ("#8", {"method.aux_block": 7, "method.temperature": 0.5}, 1),
            ("#10", {"method.aux_block": 9, "method.temperature": 0.5}, None),
        ],
        [
            ("tau 0.1", {"method.aux_block": 9, "method.temperature": 0.1}, 1),
            ("tau 0.5", {"method.aux_block": 9, "method.temperature": 0.5}, None),
            ("tau 1.0", {"method.aux_block": 9, "method.temperature": 1.0}, 1),
        ],
    ]
    assert [(block.title, block.factors) for block in design.blocks()] == [
        ("block", ("method.aux_block",)),
        ("tau", ("method.temperature",)),
    ]
    assert (
        "does not show whether the effect of a field depends on another field" in design.notes()[0]
    )
    assert OneFactor((TAU,)).notes() == ()


def test_a_ladder_adds_one_component_in_each_row_and_compares_with_the_row_above():
    off = {"method.ptc.weight": 0.0, "method.segmentation.weight": 0.0, "method.energy.weight": 0.0}
    assert table(Ladder("cls", (PTC, SEG))) == [
        [
            ("cls", off, None),
            ("+ PTC", {"method.segmentation.weight": 0.0, "method.energy.weight": 0.0}, 0),
            ("+ seg", {}, 1),
        ]
    ]
    assert Ladder("cls", (PTC, SEG)).blocks()[0].factors == tuple(off)


def test_leave_one_out_lacks_one_component_in_each_row():
    assert table(LeaveOneOut((PTC, SEG))) == [
        [
            ("all", {}, None),
            ("without PTC", {"method.ptc.weight": 0.0}, 0),
            ("without seg", {"method.segmentation.weight": 0.0, "method.energy.weight": 0.0}, 0),
        ]
    ]


def test_side_by_side_every_design_varies_around_the_bases_of_all():
    design = SideBySide((Grid((BLOCK,)), OneFactor((SCORE,))))
    at_base = {"method.aux_block": 9, "evaluate.background_threshold": 0.5}
    assert table(design) == [
        [("#8", {**at_base, "method.aux_block": 7}, 1), ("#10", at_base, None)],
        [
            ("background_threshold 0.5", at_base, None),
            ("background_threshold 0.4", {**at_base, "evaluate.background_threshold": 0.4}, 0),
        ],
    ]
    assert design.name == "grid and one factor at a time"
    assert design.notes() == (
        "Rows that differ in nothing but background_threshold are evaluations of the same "
        "trainings: their differences "
        "contain no noise of training.",
    )


def test_beside_a_ladder_others_vary_around_its_end():
    ladder, out = Ladder("cls", (PTC, SEG)), LeaveOneOut((PTC, SEG), title="left out")
    off = {"method.ptc.weight": 0.0, "method.segmentation.weight": 0.0, "method.energy.weight": 0.0}
    for design in (
        SideBySide((ladder, out, Grid((BLOCK,)))),
        SideBySide((SideBySide((ladder, out)), Grid((BLOCK,)))),
    ):
        climbed, left_out, grid = table(design)
        assert [changes for _, changes, _ in climbed] == [
            {"method.aux_block": 9, **off},
            {"method.aux_block": 9, "method.segmentation.weight": 0.0, "method.energy.weight": 0.0},
            {"method.aux_block": 9},
        ]
        assert [changes for _, changes, _ in left_out][:2] == [
            {"method.aux_block": 9},
            {"method.aux_block": 9, "method.ptc.weight": 0.0},
        ]
        assert grid == [("#8", {"method.aux_block": 7}, 1), ("#10", {"method.aux_block": 9}, None)]


@pytest.mark.parametrize(
    ("design", "name"),
    [
        (Grid((BLOCK,)), "grid"),
        (OneFactor((BLOCK,)), "one factor at a time"),
        (Ladder("cls", (PTC,)), "ladder"),
        (LeaveOneOut((PTC,)), "leave one out"),
        (Fraction((BLOCK, SCORE, Factor("num_steps", (1, 2))), ("C=AB",)), "fraction"),
        (SideBySide((Grid((BLOCK,)), Grid((SCORE,)))), "grid"),
    ],
)
def test_every_design_is_one_and_says_its_name(design, name):
    assert isinstance(design, Design)
    assert design.name == name
    # The base is there, and no row is compared with itself or with one of another block.
    for block in design.blocks():
        assert [row.versus for row in block.rows].count(None) == 1
        assert all(row.versus in {None, *range(len(block.rows))} for row in block.rows)


def test_rows_correspond_to_published_rows_by_label_or_by_a_mapping():
    blocks = Factor("method.aux_block", (6, 7), None, ("#7", "#8"))

    def paper_rows(**declared):
        return [
            row.paper_row
            for row in OneFactor((blocks,), {blocks.path: Declared(**declared)}).blocks()[0].rows
        ]

    assert paper_rows() == [None, None]
    assert paper_rows(paper=TABLE_5A) == [None, "#8"]
    assert paper_rows(paper=TABLE_5A, published_labels={"#7": "#8"}) == ["#8", None]
    assert paper_rows(paper=TABLE_5A, published_labels={}) == [None, None]


def test_what_is_declared_of_a_factor_arrives_in_its_block():
    declared = Declared(("val/seg_miou",), TABLE_5A)
    first, second = OneFactor((BLOCK, TAU), {BLOCK.path: declared}).blocks()
    assert (first.metrics, first.paper, second.metrics, second.paper) == (
        ("val/seg_miou",),
        TABLE_5A,
        (),
        None,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid((BLOCK, BLOCK)), "'method.aux_block' occurs twice in the paths"),
        (lambda: OneFactor((BLOCK, BLOCK)), "'method.aux_block' occurs twice in the paths"),
        (lambda: OneFactor(()), "at least one factor"),
        (
            lambda: OneFactor((BLOCK,), {"method.aux_blok": Declared()}),
            r"declared for \['method.aux_blok'\]",
        ),
        (lambda: Ladder("cls", ()), "at least one component"),
        (lambda: LeaveOneOut(()), "at least one component"),
        (lambda: Ladder("cls", (PTC, PTC)), "'PTC' occurs twice"),
        (
            lambda: LeaveOneOut((PTC, Component("p", PTC.off))),
            "'method.ptc.weight' occurs twice in the fields",
        ),
        (lambda: Component("PTC", {}), "does not say which fields"),
        (lambda: SideBySide(()), "at least one design"),
        (
            lambda: SideBySide((Grid((BLOCK,)), Grid((Factor(BLOCK.path, (7, 8)),)))),
            "method.aux_block are 9 and 7",
        ),
        (
            lambda: Declared(paper=TABLE_5A, published_labels={"#9": "#9"}).block(
                "x", [], [("a", {}, None)]
            ),
            r"given for \['#9'\]",
        ),
        (lambda: Block("x", (Row("a", {}, None, "#9"),), ()), "no published row '#9'"),
        (
            lambda: Block("x", (Row("a", {}, None), Row("a", {"b": 1}, 0)), ()),
            "'a' occurs twice in the rows of 'x'",
        ),
        (lambda: Block("x", (Row("a", {}, 0),), ()), "is not another row"),
        (lambda: Block("x", (Row("a", {}, None), Row("b", {}, 2)), ()), "is not another row"),
        (lambda: Factor("seed", (0, 1)), "Study.seeds"),
        (lambda: Factor("method.aux_block", ()), "no values"),
        (lambda: Factor("method.aux_block", (7, 8, 7)), "7 occurs twice"),
        (lambda: Factor("method.aux_block", (7, 8), None, ("#8",)), "2 values but 1 labels"),
        (
            lambda: Factor("method.aux_block", (7, 8), 9),
            "base 9 of the factor method.aux_block is none of its values",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_of_a_factor_is_its_first_value_or_the_one_named():
    assert Factor("num_steps", (3, 4)).base == 3
    assert Factor("num_steps", (3, 4), 4).base == 4
    assert Factor("evaluate.max_images", (3, None)).base is None


def two_level(count):
    return tuple(Factor(f"path.{letter}", (0, 1), title=letter) for letter in "abcdefg"[:count])


def signs(fraction):
    """Every row as +1 (base) and -1, in the order of the factors."""
    return [
        [1 if value == 0 else -1 for value in row.changes.values()]
        for row in fraction.blocks()[0].rows
    ]


@pytest.mark.parametrize(
    ("count", "generators", "resolution"),
    [
        (3, ("C=AB",), 3),
        (4, ("D=ABC",), 4),
        (5, ("D=AB", "E=AC"), 3),
        (5, ("E=ABCD",), 5),
        (6, ("E=ABC", "F=BCD"), 4),
        (7, ("D=AB", "E=AC", "F=BC", "G=ABC"), 3),
    ],
)
def test_aliases_are_the_columns_of_the_design_that_are_equal(count, generators, resolution):
    fraction = Fraction(two_level(count), generators)
    rows = signs(fraction)
    assert len(rows) == len(set(map(tuple, rows))) == 2 ** (count - len(generators))
    assert rows[0] == [1] * count
    assert [row.versus for row in fraction.blocks()[0].rows] == [None, *[0] * (len(rows) - 1)]

    def column(letters):
        product = [1] * len(rows)
        for letter in letters:
            product = [
                p * row["ABCDEFG".index(letter)] for p, row in zip(product, rows, strict=True)
            ]
        return tuple(product)

    letters = "ABCDEFG"[:count]
    effects = [
        "".join(c) for order in range(1, count + 1) for c in itertools.combinations(letters, order)
    ]
    # A word is a column of ones; two effects are aliases where their columns are equal, else
    # orthogonal.
    words = [effect for effect in effects if column(effect) == (1,) * len(rows)]
    assert list(fraction.words) == words
    assert fraction.resolution == min(map(len, words)) == resolution
    small = [effect for effect in effects if len(effect) <= 2]
    groups = {}
    for effect in small:
        groups.setdefault(column(effect), []).append(effect)
    assert sorted(fraction.aliases) == sorted(
        tuple(group) for group in groups.values() if len(group) > 1
    )
    for one, other in itertools.combinations(groups, 2):
        assert sum(a * b for a, b in zip(one, other, strict=True)) == 0


def test_a_half_fraction_of_four_factors_as_textbooks_have_it():
    fraction = Fraction(two_level(4), ("D=ABC",))
    labels = [row.label for row in fraction.blocks()[0].rows]
    assert labels[:4] == [
        "a 0, b 0, c 0, d 0",
        "a 1, b 0, c 0, d 1",
        "a 0, b 1, c 0, d 1",
        "a 1, b 1, c 0, d 0",
    ]
    assert fraction.notes() == (
        "8 of 16 combinations (A a; B b; C c; D d; +1 is the base).",
        "Defining relation: I = ABCD. Resolution 4.",
        "Aliased effects, which this design does not distinguish: AB = CD; AC = BD; AD = BC "
        "(interactions of three and more factors are left out here).",
    )
    assert "No main effect or interaction of two" in Fraction(two_level(5), ("E=ABCD",)).notes()[2]


def test_the_base_of_a_fraction_need_not_be_the_first_value():
    fraction = Fraction((BLOCK, *two_level(2)), ("C=AB",))
    assert [row.changes["method.aux_block"] for row in fraction.blocks()[0].rows] == [9, 7, 9, 7]


@pytest.mark.parametrize(
    ("factors", "generators", "message"),
    [
        ((*two_level(2), TAU), ("C=AB",), "needs two values of each factor; method.temperature"),
        (two_level(3), (), "take a Grid"),
        (two_level(3), ("C",), "should have the form D=ABC"),
        (two_level(3), ("C=",), "should have the form D=ABC"),
        (two_level(3), ("C=-AB",), "should have the form D=ABC"),
        (two_level(3), ("D=AB",), "in the letters ABC of the 3 factors"),
        (two_level(4), ("D=AB", "D=AC"), "Two generators set D"),
        (two_level(3), ("C=AAB",), "names a letter twice"),
        (
            two_level(4),
            ("C=AB", "D=AC"),
            "D is set to AC, but another generator sets a letter of it",
        ),
        (two_level(3), ("C=ABC",), "C is set to ABC"),
        (two_level(3), ("C=A",), r"alias two main effects \(I = AC\)"),
        (two_level(4), ("C=AB", "D=AB"), r"alias two main effects \(I = CD = ABC = ABD\)"),
        ((BLOCK, BLOCK), ("B=A",), "occurs twice in the paths"),
    ],
)
def test_a_fraction_that_makes_no_sense_is_refused(factors, generators, message):
    with pytest.raises(ValueError, match=message):
        Fraction(factors, generators)
