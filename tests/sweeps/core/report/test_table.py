"""The table of studies made by hand, whose means and deviations can be computed on paper."""

import csv
import io
import re

import pytest

from sweeps.core.design.designs import Block
from sweeps.core.design.paper import Claim, Paper, PaperRow
from sweeps.core.design.study import BASE_AGAIN, Metric
from sweeps.core.report.columns import difference_text, mean_text
from sweeps.core.report.numbers import format_p
from sweeps.core.report.report import make_report
from sweeps.core.report.table import StudyTable, TableRow, differences_grid, rows_grid, table_csv
from sweeps.core.report.terminal import MAX_ROWS
from sweeps.core.store.study_record import StudyRecord
from tests.sweeps.core.records import SEG, M, make_study

PAPER = Paper(
    "Table 5 (a)",
    "VOC val.",
    (PaperRow("#10", {M: 0.705}, default=True), PaperRow("#8", {M: 0.635})),
    (Claim("rises to block 10", M, "#10", ("#8",), 7.0, "large"),),
)
VALUES = {"#10": (0.60, 0.62, 0.64), "#8": (0.50, 0.51, 0.55), BASE_AGAIN: (0.61, 0.62, 0.60)}


def table(study: StudyRecord) -> StudyTable:
    return make_report(study).source.table


def forms(study: StudyRecord) -> tuple[str, str, str]:
    report = make_report(study)
    return report.terminal, report.markdown, report.latex


def terminal(study: StudyRecord) -> str:
    return make_report(study).terminal


def markdown(study: StudyRecord) -> str:
    return make_report(study).markdown


def texts(row: TableRow) -> list[str]:
    return [mean_text(one) for one in row.measurements]


def rows(study: StudyRecord) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table_csv(table(study)))))


def test_a_row_by_hand():
    """#8 - #10 is -0.10, -0.11, -0.09: mean -0.10, sd 0.01, so t = -0.10 / (0.01 / sqrt(3)) = -17.3
    with 2 degrees of freedom, whose two-sided p is 0.00332 (t^2 = 300: 1 - sqrt(300 / 302)), and
    t(0.975, 2) =
    4.3027."""
    found = table(make_study(VALUES))
    block = found.blocks[0]
    base, row, again = block.rows
    assert [*texts(base), *texts(row)] == ["62.0 ± 2.0", "52.0 ± 2.6"]
    assert [one.mark for row in block.rows for one in row.measurements] == ["best", "second", ""]
    half = 100 * 4.3027 * 0.01 / 3**0.5
    line, of_again = differences_grid(found, block).lines
    assert [cell.text for cell in line] == [
        *("#8", "#10", "M", "-10.00"),
        f"{-10 - half:+.2f} to {-10 + half:+.2f}",
        *("0.003", "-5.64", "-", ""),  # Hedges: -10 x gamma(1) / gamma(1/2)
    ]
    assert {cell.mark for cell in line} == {"significant"}
    assert [r.n for r in block.rows] == ["3", "3", "3"]
    assert row.versus == again.versus == "#10"
    assert base.comparisons == ()
    assert of_again[5].text == "-"


def test_all_forms_print_the_same_numbers():
    study = make_study(
        VALUES,
        more={
            SEG: {"#10": (0.5, 0.52, 0.51), "#8": (0.4, 0.47, 0.5), BASE_AGAIN: (0.5, 0.5, 0.51)}
        },
    )
    found = table(study)
    (block,) = found.blocks
    shown = [cell.text for line in rows_grid(found, block).lines for cell in line]
    shown += [cell.text for line in differences_grid(found, block).lines for cell in line]
    assert len(shown) == 3 * 4 + 2 * 9
    plain, marked, tex = forms(study)
    marked = re.sub(r"\*\*|</?u>", "", marked)
    tex = re.sub(r"\\textbf\{([^}]*)\}|\\underline\{([^}]*)\}", r"\1\2", tex)
    tex = tex.replace("$-$", "-").replace(r"$\pm$", "±").replace("\\", "")
    for text in shown:
        assert text in plain
        assert text in marked
        assert text in tex
    lines = rows(study)
    assert len(lines) == 3 * 2
    for line, one in zip(lines, found.measurements, strict=True):
        assert f"{100 * float(line['mean']):.1f} ± {100 * float(line['sd']):.1f}" == mean_text(one)
        assert line["mark"] == {"best": "bold", "second": "underlined", "": ""}[one.mark]
    assert float(lines[2]["difference"]) == pytest.approx(-0.10)
    assert [line["declared"] for line in lines] == ["no", "no", "yes", "no", "no", "no"]


def test_the_terminal_is_120_columns_wide_and_marks_without_colour():
    more = dict.fromkeys(("val/aux_cam_miou", SEG), VALUES)
    study = make_study(VALUES, more=more, paper=PAPER)
    text = terminal(study)
    assert max(map(len, text.splitlines())) <= 120
    assert re.search(
        r"^#10 +62\.0 ± 2\.0 \* +62\.0 ± 2\.0 \* +62\.0 ± 2\.0 \* +3 +70\.5", text, re.MULTILINE
    )
    assert re.search(r"^#8 +52\.0 ± 2\.6 _ ", text, re.MULTILINE)
    assert "\x1b" not in text


def test_a_terminal_breaks_headings_and_long_texts_where_the_table_is_too_wide():
    long = "a row with a label that says all that it changes, and why it does"
    keys = [f"val/some_metric_with_a_long_name_{number}" for number in range(5)]
    values = {"#10": VALUES["#10"], long: VALUES["#8"]}
    text = terminal(make_study(values, more=dict.fromkeys(keys, values), paper=PAPER))
    assert max(map(len, text.splitlines())) <= 120
    table_text = text.partition("\n\n")[2].partition("\n\n")[0]
    # Words are broken at blanks, headings at underscores; numbers never.
    assert all(word in table_text for word in long.split())
    assert "metric_\n" not in table_text
    assert re.search(r"some_ +some_ ", table_text)
    assert table_text.count("52.0 ± 2.6 _") == 6


def test_a_long_table_is_left_to_the_files():
    study = make_study({f"r{number}": (number / 1000,) for number in range(MAX_ROWS + 50)})
    text = terminal(study)
    assert f"r{MAX_ROWS - 1} " in text
    assert re.search(rf"^r{MAX_ROWS} ", text, re.MULTILINE) is None
    assert "50 more rows are in the files." in text
    assert f"| r{MAX_ROWS + 49} " in markdown(study)


def test_what_does_not_count_is_told_without_its_traceback():
    study = make_study(
        VALUES,
        states={
            ("#8", 0): "failed",
            ("#8", 1): "diverged",
            ("#10", 2): "running",
            (BASE_AGAIN, 0): "waiting",
        },
    )
    found = table(study)
    assert found.states == (
        "#8, seed 0: failed (MemoryError).",
        "#8, seed 1: diverged. ptc is nan after step 40.",
        "1 of 9 trials is running.",
        "1 of 9 trials is waiting.",
    )
    base, row, _ = found.blocks[0].rows
    assert (base.n, row.n) == ("2 of 3", "1 of 3")
    assert texts(row) == ["55.0"]
    assert row.comparisons == ()
    for text in forms(study):
        assert "Traceback" not in text
        assert "ptc is nan after step 40." in text


def test_nothing_has_ended_yet():
    study = make_study(VALUES, states={(label, n): "waiting" for label in VALUES for n in range(3)})
    found = table(study)
    assert [text for row in found.blocks[0].rows for text in texts(row)] == ["-", "-", "-"]
    assert {line["mean"] + line["sd"] + line["mark"] for line in rows(study)} == {""}
    assert {line["n"] for line in rows(study)} == {"0"}


def test_daggers_lead_to_footnotes():
    other = {
        "#8": {
            "provenance": {"versions": {"torch": "2.12.0"}},
            "identity": {"versions": {"torch": "2.12"}},
        }
    }
    study = make_study(VALUES, amend=other)
    found = table(study)
    base, row, again = found.blocks[0].rows
    assert base.footnotes == again.footnotes == ()
    assert row.footnotes
    assert re.search(r"^#8 †1 ", terminal(study), re.MULTILINE)
    assert "torch" in found.footnotes[row.footnotes[0] - 1]
    assert f"†{row.footnotes[0]} {found.footnotes[row.footnotes[0] - 1]}" in terminal(study)


def test_the_paper_stands_beside_rows_of_another_label():
    study = make_study(
        {"#4": (0.6, 0.61), "#2": (0.5, 0.52)},
        paper=PAPER,
        published={"#4": "#10", "#2": "#8"},
    )
    found = table(study)
    block = found.blocks[0]
    assert [(row.planned.label, row.planned.paper_row, dict(row.paper)) for row in block.rows] == [
        ("#4", "#10", {M: "70.5"}),
        ("#2", "#8", {M: "63.5"}),
    ]
    assert block.renamed
    assert re.search(r"^\| #2 .*\| +#8 \| +63\.5 \|", markdown(study), re.MULTILINE)
    assert "Paper: Table 5 (a). VOC val." in found.captions
    assert any("It is not PASCAL VOC" in caption for caption in found.captions)
    assert [claim.name for claim in found.claims] == ["rises to block 10"]
    assert found.claims[0].text in terminal(study)
    assert [line["paper"] for line in rows(study)] == ["0.705000", "0.635000"]


def test_blocks_share_a_base_and_declare_their_own_metrics():
    one = Block("(a) block", (), ("method.aux_block",), (M,), None)
    two = Block("(b) crop", (), ("method.ctc.crop",), (SEG,), None)
    values = {"base": (0.5, 0.6), "a": (0.4, 0.5), "b": (0.3, 0.5)}
    study = make_study(
        values, more={SEG: values}, blocks=[(one, ["base", "a"]), (two, ["base", "b"])]
    )
    found = table(study)
    assert [block.title for block in found.blocks] == ["(a) block", "(b) crop"]
    shown = [(one.row.label, one.metric.key) for block in found.blocks for one in block.comparisons]
    assert shown == [("a", M), ("b", SEG)]


def test_a_metric_that_is_no_percentage_and_better_when_lower():
    loss = Metric("train/loss_total", "loss", higher_is_better=False)
    found = table(make_study({"a": (0.5001, 0.4999), "b": (0.2, 0.2002)}, metrics=(loss,)))
    first, second = found.blocks[0].rows
    assert [*texts(first), *texts(second)] == ["0.500 ± 0.000", "0.200 ± 0.000"]
    assert second.measurements[0].mark == "best"
    assert difference_text(second.comparisons[0]) == "-0.2999"


def test_the_same_results_give_the_same_bytes_wherever_and_whenever():
    """What a trial's entry says of times, hosts and tries is in no table."""
    elsewhere = {
        label: {
            "wall_time_s": 999.0,
            "attempts": 2,
            "provenance": {"started": "2027-01-01T00:00:00+00:00", "commit": "f" * 16},
        }
        for label in VALUES
    }
    here, there = make_study(VALUES), make_study(VALUES, amend=elsewhere)
    assert table_csv(table(here)) == table_csv(table(there))
    assert forms(here) == forms(there)


def test_an_analysis_of_variance_is_printed():
    cells = {
        f"{a}, {b}": (0.4 + a / 10 + s / 100 + a * b * s / 50,) * 1
        for a in (0, 1)
        for b in (0, 1)
        for s in (1,)
    }
    values = {label: (value[0], value[0] + 0.02, value[0] + 0.01) for label, value in cells.items()}
    values["1, 1"] = (0.9, 0.93, 0.91)
    changes = {f"{a}, {b}": {"method.x": a, "method.y": b} for a in (0, 1) for b in (0, 1)}
    study = make_study(values, factors=("method.x", "method.y"), changes=changes)
    (terms,) = make_report(study).cards.grids("body")
    degrees = [int(line[1].text) for line in terms.lines]
    assert degrees[-1] == 3 * 4 - 1 - sum(degrees[:-1])
    for text in forms(study):
        assert all(line[2].text in text for line in terms.lines)


@pytest.mark.parametrize(
    ("p", "text"), [(0.00049, "<0.001"), (0.0005, "0.001"), (0.0496, "0.050"), (1.0, "1.000")]
)
def test_p_values(p: float, text: str):
    assert format_p(p) == text


def test_markdown_is_not_read_as_markup():
    study = make_study({"a|b": (0.5,), "<i>*x*": (0.4,)}, title="Index of the <auxiliary> block")
    lines = markdown(study).splitlines()
    assert lines[0] == r"# Index of the \<auxiliary\> block"
    assert any(line.startswith(r"| a\|b ") for line in lines)
    assert any(line.startswith(r"| \<i\>\*x\* ") for line in lines)


def test_a_fraction_says_what_it_left_out_and_what_it_cannot_tell_apart():
    letters = "abc"
    values, changes = {}, {}
    for a, b in ((0, 0), (1, 0), (0, 1), (1, 1)):
        levels = (a, b, (a + b) % 2)
        label = "".join(map(str, levels))
        values[label] = tuple(0.5 + 0.1 * a + 0.001 * number * (number - a) for number in range(3))
        changes[label] = {
            f"method.{name}": level for name, level in zip(letters, levels, strict=True)
        }
    study = make_study(values, factors=tuple(f"method.{name}" for name in letters), changes=changes)
    (terms,) = make_report(study).cards.grids("body")
    left_out = "method.a x method.b is left out: these rows do not distinguish it from other terms."
    # 0.6 and 0.5, and over the seeds 0.001 x (0 + 1 + 2) / 3 less at a = 1.
    effect = (
        "Effect of method.a from 0 to 1: +9.90 (+9.65 to +10.15); aliased with method.b x method.c."
    )
    assert left_out in terms.notes
    assert effect in terms.notes
    for form in forms(study):
        text = re.sub(r"\s+", " ", form.replace("\\_", "_"))
        assert left_out in text
        assert effect in text


def test_a_finished_trial_without_a_number_is_not_counted_behind_its_mean():
    seg = {"#10": (0.5, 0.52, 0.51), "#8": (0.4, float("nan"), 0.5), BASE_AGAIN: (0.5, 0.5, 0.51)}
    found = table(make_study(VALUES, more={SEG: seg}))
    assert [row.n for row in found.blocks[0].rows] == ["3", "3 (seg_miou 2)", "3"]
    never = {**seg, "#8": (float("nan"),) * 3}
    row = table(make_study(VALUES, more={SEG: never})).blocks[0].rows[1]
    assert (row.n, texts(row)[1]) == ("3", "-")


def test_a_ladder_is_compared_with_the_row_above():
    values = {label: (0.5 + number / 100, 0.52) for number, label in enumerate(("a", "b", "c"))}
    assert table(make_study(values)).blocks[0].against == "the base"
    assert table(make_study(values, versus={"c": "b"})).blocks[0].against == "the row above"
    values["d"] = (0.4, 0.41)
    assert table(make_study(values, versus={"d": "b"})).blocks[0].against == "another row"


def test_remarks_are_explained_and_points_are_points():
    captions = " ".join(table(make_study(VALUES)).captions)
    assert "Within noise: a difference smaller than that" in captions
    assert re.search(r"which is M [\d.]+ points\.", captions)
    assert "Underpowered" not in captions
    weak = make_study({"#10": (0.60, 0.62, 0.64), "#8": (0.61, 0.60, 0.66)})
    assert "could not have shown a difference of 0.5 points" in " ".join(table(weak).captions)
