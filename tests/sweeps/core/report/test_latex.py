import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sweeps.core.design.paper import Paper, PaperRow
from sweeps.core.design.study import BASE_AGAIN
from sweeps.core.report.latex import escaped
from sweeps.core.report.report import make_report
from tests.sweeps.core.records import SEG, M, make_study

NASTY = r"50% of $x_1 & {y}^2 ~ #3 \ <a> τ = 0.5 ± 1 é 漢"
PAPER = Paper(
    "Table 5 (a)", "VOC val.", (PaperRow("#8", {M: 0.635}), PaperRow("#10", {M: 0.705, SEG: 0.681}))
)
TEX = shutil.which("pdflatex") or shutil.which("tectonic")


def text(**changes: object) -> str:
    values = {"#10": (0.60, 0.62, 0.64), NASTY: (0.50, 0.51, 0.55), BASE_AGAIN: (0.61, 0.62, 0.60)}
    published = {"#10": "#10", NASTY: "#8"}
    amend = {
        NASTY: {
            "identity": {"versions": {"torch": "2.12"}},
            "provenance": {"versions": {"torch": "2.12.0"}},
        }
    }
    study = make_study(
        values,
        more={SEG: values},
        paper=PAPER,
        published=published,
        amend=amend,
        title=NASTY,
        **changes,
    )
    return make_report(study).latex


def test_it_is_ascii_and_every_line_has_the_columns_of_its_table():
    made = text()
    assert made.isascii()
    tables = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", made, flags=re.DOTALL)
    assert len(tables) == 2
    for columns, body in tables:
        for line in body.splitlines():
            if line.endswith(r"\\"):
                spans = [int(span) for span in re.findall(r"\\multicolumn\{(\d+)\}", line)]
                cells = len(re.findall(r"(?<!\\)&", line)) + 1
                assert cells + sum(spans) - len(spans) == len(columns), line


def test_marks_and_daggers():
    made = text()
    assert r"\textbf{62.0 $\pm$ 2.0}" in made
    assert r"\underline{52.0 $\pm$ 2.6}" in made
    assert r"$^{\dag 1}$" in made
    assert "$-$10.00" in made


def test_characters():
    assert escaped(NASTY) == (
        r"50\% of \$x\_1 \& \{y\}\textasciicircum{}2 \textasciitilde{} \#3 \textbackslash{} "
        r"$<$a$>$ $\tau$ = 0.5 "
        r"$\pm$ 1 e ?"
    )
    assert escaped("-0.50 to -1, p-value, x-1") == "$-$0.50 to $-$1, p-value, x-1"


@pytest.mark.slow
@pytest.mark.skipif(TEX is None, reason="no TeX is installed")
def test_it_compiles_within_the_line(tmp_path: Path):
    (tmp_path / "table.tex").write_text(text())
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\n"
        "\\begin{document}\\input{table.tex}\\end{document}\n"
    )
    command = [
        TEX,
        *(["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in TEX else []),
        "paper.tex",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
    assert "Overfull" not in done.stdout
