"""A section is one file: the page, Markdown, LaTeX, the terminal and the archive show it without
another change.
"""

import re
from types import SimpleNamespace

import pytest

from sweeps.core.report.bundle import bundle_files
from sweeps.core.report.page import page
from sweeps.core.report.report import make_report
from sweeps.core.report.section import Card, Section, Source, common_seeds
from sweeps.core.report.sections import SECTIONS
from sweeps.core.report.text_grid import TextColumn, TextGrid, make_cells
from tests.sweeps.core.records import make_study

STUDY = make_study({"#10": (0.60, 0.62, 0.64), "#8": (0.50, 0.51, 0.55)})


def show(source: Source) -> Card | str:
    grid = TextGrid(
        (TextColumn("word"), TextColumn("size", "right")),
        (make_cells("rows-counted", "2"),),
        "A table",
    )
    return Card("What it shows.", lambda: "<svg><title>drawn</title></svg>", (grid,))


def forms(section: Section) -> tuple[dict[str, str], str]:
    """The archive, which has all text forms but the terminal's, with the
    terminal's; and the page.
    """
    report = make_report(STUDY, sections=(*SECTIONS, section))
    return {**bundle_files(report), "terminal": report.terminal}, page(
        report.source, report.cards, "now"
    ).html


def test_a_new_section_is_in_every_form():
    files, html = forms(Section("extra", "Another analysis", show, text="body"))
    assert all("rows-counted" in files[name] for name in ("table.md", "table.tex", "terminal"))
    assert files["figures/extra.svg"].startswith("<svg><style>")
    (shown,) = re.findall(r'<section id="extra">(.*?)</section>', html, re.DOTALL)
    for text in (
        "Another analysis",
        "<title>drawn</title>",
        "What it shows.",
        "A table",
        "rows-counted",
    ):
        assert text in shown


def test_an_appendix_is_in_markdown_alone_after_the_notes():
    files, _ = forms(Section("extra", "Another analysis", show, text="appendix"))
    assert files["table.md"].index("- Bold: ") < files["table.md"].index("## A table")
    assert "rows-counted" not in files["table.tex"] + files["terminal"]


def test_a_section_that_does_not_apply_says_why():
    files, html = forms(
        Section("extra", "Another <analysis>", lambda _: "there are fewer than three rows")
    )
    assert "figures/extra.svg" not in files
    assert 'id="extra"' not in html
    assert "<li>Another &lt;analysis&gt;: there are fewer than three rows.</li>" in html


def test_sections_have_names_of_their_own():
    names = [section.name for section in SECTIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("common", "seeds"), [(1, "seed is"), (3, "3 seeds are")])
def test_the_sentence_on_common_seeds_leaves_out_the_base_again(common, seeds):
    source = SimpleNamespace(
        study=SimpleNamespace(sequential="a plan"),
        analysis=SimpleNamespace(looks=SimpleNamespace(common=common)),
    )
    assert common_seeds(source) == (
        f" Only the first {seeds} used, which all rows but the A/A row have."
    )
