"""The reviewer's archive, whose script is a second implementation of the numbers of the table."""

import csv
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sweeps.core.design.designs import Block
from sweeps.core.design.paper import Claim, Paper, PaperRow
from sweeps.core.design.seeds import Futility, Sequential
from sweeps.core.design.study import BASE_AGAIN, Metric
from sweeps.core.report.bundle import bundle_files, rebuild_files, write_zip
from sweeps.core.report.rebuild_table import read_values, rebuilt
from sweeps.core.report.report import make_report
from sweeps.core.store.study_record import StudyRecord
from tests.sweeps.core.records import SEG, M, make_study

LOSS = "train/loss_total"
# As on a reviewer's machine: none of these can be imported.
ALONE = """
import runpy, sys
absent = {"torch", "toco", "sweeps", "pandas", "statsmodels", "matplotlib"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Absent())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def files(study: StudyRecord) -> dict[str, str]:
    return bundle_files(make_report(study))


def tables(study: StudyRecord) -> dict[str, str]:
    source = make_report(study, sections=()).source
    return rebuild_files(source.table, source.study, source.analysis.looks)


def drawn(seed: int) -> StudyRecord:
    """A study of random size, effects and holes: with ties, with rows without spread, with rows
    nobody has trained.
    """
    generator = np.random.default_rng(seed)
    num_seeds = int(generator.integers(1, 7))
    labels = [f"row {number}" for number in range(int(generator.integers(1, 7)))]
    if generator.random() < 0.7:
        labels.append(BASE_AGAIN)

    def values() -> dict[str, list[float]]:
        shared = generator.normal(0.5, 0.05, num_seeds)
        rows = {}
        for label in labels:
            kind = generator.random()
            own = generator.normal(
                generator.choice([0, 0.1]), 10 ** generator.uniform(-4, -1), num_seeds
            )
            row = (
                shared + own
                if kind < 0.7
                else shared
                if kind < 0.8
                else shared + 0.1
                if kind < 0.9
                else 0 * own + 0.25
            )
            rows[label] = [float(value) for value in row]
        return rows

    rows = [label for label in labels if label != BASE_AGAIN]
    one = Block(
        "(a)",
        (),
        ("method.aux_block",),
        (M, LOSS),
        Paper("T", "S", (PaperRow("row 0", {M: 0.705}),)),
    )
    two = Block("(b)", (), ("method.aux_block",), (SEG,), None)
    states = {
        (label, n): "failed"
        for label in labels
        for n in range(num_seeds)
        if generator.random() < 0.15
    }
    return make_study(
        values(),
        metrics=(Metric(LOSS, "loss", higher_is_better=False),),
        more={M: values(), SEG: values()},
        blocks=[(one, rows), (two, rows[:1] + rows[2:])],
        states=states,
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_table_is_made_again_byte_by_byte(seed: int):
    made = tables(drawn(seed))
    assert (
        rebuilt(json.loads(made["table.json"]), read_values(made["values.csv"]))
        == made["table.csv"]
    )


def drawn_with_looks(seed: int) -> StudyRecord:
    """A sequential study in a random state: claims of a paper, and a block without any."""
    generator = np.random.default_rng(seed)
    rows = ["base", "small", "large", "none", "other"]
    sizes = dict(zip(rows, (0, -0.01, -0.1, 0, 0.05), strict=True))

    def values() -> dict[str, list[float]]:
        base = generator.normal(0.5, 0.05, 7)
        own = {label: generator.normal(size, 0.01, 7) for label, size in sizes.items()}
        own["base"] *= 0
        drawn = {label: [float(value) for value in base + own[label]] for label in rows}
        return drawn | {BASE_AGAIN: [float(value) for value in generator.normal(0.5, 0.05, 3)]}

    def claim(*than: str) -> Claim:
        return Claim(f"over {than}", M, "base", than, 1.0, "small")

    paper = Paper(
        "T",
        "S",
        tuple(PaperRow(label, {M: 0.7}) for label in rows),
        (claim("large"), claim("small", "large"), claim("none"), claim("other")),
    )
    num_finished = int(generator.choice([2, 3, 4, 5, 7]))
    states = {
        (label, n): "waiting"
        for label in (*rows, BASE_AGAIN)
        for n in range(7 if label in rows else 3)
        if n >= num_finished
    }
    if generator.random() < 0.3:
        states[rows[int(generator.integers(1, 5))], int(generator.integers(0, 5))] = "diverged"
    return make_study(
        values(),
        more={SEG: values()},
        blocks=[
            (Block("(a)", (), ("method.aux_block",), (M,), paper), rows),
            (Block("(b)", (), ("method.aux_block",), (SEG,), None), rows[:3]),
        ],
        states=states,
        sequential=Sequential(
            looks=(3, 5, 7),
            futility=Futility() if generator.random() < 0.5 else None,
            diverged_value=0.0 if generator.random() < 0.5 else None,
        ),
        margin=float(generator.choice([0.02, 0.05])) if generator.random() < 0.5 else None,
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_table_of_a_sequential_study_is_made_again_byte_by_byte(seed: int):
    made = tables(drawn_with_looks(seed))
    assert (
        rebuilt(json.loads(made["table.json"]), read_values(made["values.csv"]))
        == made["table.csv"]
    )


def test_the_drawn_sequential_studies_have_all_outcomes():
    made = [tables(drawn_with_looks(seed)) for seed in range(40)]
    lines = [line for files in made for line in csv.DictReader(io.StringIO(files["table.csv"]))]
    assert {line["outcome"] for line in lines} == {
        *("", "shown", "opposite", "no difference", "given up", "undecided", "open", "not tested")
    }
    assert {line["pairs"] for line in lines} >= {"0", "3", "5", "7"}
    assert any(0 < float(line["p_holm"] or 0) < 0.05 for line in lines)


def test_the_drawn_studies_have_what_can_go_wrong():
    studies = [drawn(seed) for seed in range(40)]
    lines = [
        line
        for study in studies
        for line in csv.DictReader(io.StringIO(tables(study)["table.csv"]))
    ]
    assert {line["mark"] for line in lines} == {"bold", "underlined", ""}
    assert {line["n"] for line in lines} >= set("0123456")
    assert {"", "0.000000", "1.000000"} <= {line["p_holm"] for line in lines}
    assert any(line["p"] and not line["difference_low"] for line in lines)
    assert any(0 < float(line["p_holm"] or 0) < 0.05 for line in lines)


def test_the_script_needs_numpy_and_scipy_alone_and_sees_a_changed_value(tmp_path: Path):
    values = {"#10": (0.60, 0.62, 0.64), "#8": (0.50, 0.51, 0.55), BASE_AGAIN: (0.61, 0.62, 0.60)}
    write_zip(tmp_path / "bundle.zip", "fake", files(make_study(values)))
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "fake"
    run = [sys.executable, "-c", ALONE, folder / "rebuild_table.py"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 lines, all the same" in done.stdout
    raw = (folder / "values.csv").read_text()
    assert "1,0,0,val/cam_miou,0.5\n" in raw
    (folder / "values.csv").write_text(raw.replace(",0.5\n", ",0.59\n"))
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "-Row,#8," in done.stdout
    assert "+Row,#8," in done.stdout


def test_checksums_cover_every_file(tmp_path: Path):
    made = files(make_study({"a": (0.5, 0.6), "b": (0.4, 0.5)}))
    sums = dict(reversed(line.split("  ")) for line in made.pop("SHA256SUMS").splitlines())
    assert sums == {name: hashlib.sha256(text.encode()).hexdigest() for name, text in made.items()}
    assert {
        "values.csv",
        "trials.csv",
        "environments.json",
        "configs/cell_00001.json",
        "README.md",
    } <= made.keys()


def test_the_same_results_give_the_same_archive(tmp_path: Path):
    for name in ("one.zip", "two.zip"):
        write_zip(tmp_path / name, "fake", files(make_study({"a": (0.5, 0.6), "b": (0.4, 0.5)})))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zip", "two.zip"]


def test_nothing_says_who_or_where():
    private = {
        "config": {
            "data": {"root": "/home/reviewed/VOC2012", "weights": "C:\\Users\\reviewed\\w.pth"}
        },
        "provenance": {"command": ["/home/reviewed/run.py"], "host": "reviewed.example.org"},
        "origin": {"study": "reviewed"},
    }
    made = files(make_study({"a": (0.5, 0.6), "b": (0.4, 0.5)}, amend={"a": private, "b": private}))
    assert [name for name, text in made.items() if "reviewed" in text] == []
    config = json.loads(made["configs/cell_00000.json"])
    assert (config["data"]["root"], config["data"]["weights"]) == ("VOC2012", "w.pth")


def test_figures_stand_alone():
    made = files(make_study({"a": (0.5, 0.6), "b": (0.4, 0.5), BASE_AGAIN: (0.5, 0.55)}))
    figures = {name: text for name, text in made.items() if name.startswith("figures/")}
    assert "figures/differences.svg" in figures
    for text in figures.values():
        assert text.startswith("<svg")
        assert 'xmlns="http://www.w3.org/2000/svg"' in text
        style = text.partition("<style>")[2].partition("</style>")[0]
        assert "--ink: #" in style
        assert [name for name in set(_variables(text)) if f"{name}:" not in style] == []


def _variables(text: str) -> list[str]:
    return [part.partition(")")[0] for part in text.split("var(")[1:]]
