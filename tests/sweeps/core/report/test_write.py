"""The report's files, of a study on disk: study.json and a ledger beside it."""

import re
from pathlib import Path

import pytest

from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.report import write_bundle, write_report
from sweeps.core.report.report import _drop_details
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.study_folder import StudyFolder
from tests.sweeps.core.records import M, make_study

VALUES = {"#10": (0.60, 0.62), "#8": (0.50, 0.51)}


def write_study(storage: Path, **changes: object) -> Path:
    """A study's folder with the entries of those trials that have ended."""
    study = Study(
        name="fake",
        title="Fake trainings",
        recipe="shapes_nano",
        design=OneFactor((Factor("method.aux_block", (9, 7), labels=("#10", "#8")),)),
        seeds=(0, 1),
        metrics=(Metric(M, "M"),),
        purpose="direction",
        repeat_base=False,
    )
    record = make_study(VALUES, path=storage / "fake-01234567", **changes)
    ledger = Ledger(storage)
    for trial in record.trials:
        if trial.entry:
            ledger.write(trial.entry)
        elif trial.state == "failed":
            ledger.add_failure(trial.key, "MemoryError: none left", str(trial.message))
    folder = StudyFolder(storage / "fake-01234567")
    folder.write_study(study.resolve(), [trial.key for trial in record.trials], [], None)
    return folder.path


def test_every_form_is_written(tmp_path: Path):
    report = write_report(write_study(tmp_path))
    assert [path.name for path in report.files] == [
        "table.md",
        "table.csv",
        "table.tex",
        "report.html",
    ]
    assert report.page == report.files[-1]
    assert report.exit_code == 0
    markdown, csv, latex, page = (path.read_text() for path in report.files)
    assert report.note == markdown
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page))
    for text in (report.text, markdown, shown):
        assert "61.0 ± 1.4" in text
    assert r"61.0 $\pm$ 1.4" in latex
    assert csv.splitlines()[1].split(",")[9:11] == ["0.610000", "0.014142"]
    assert not list(report.page.parent.glob(".*.partial"))


def test_a_moved_storage_gives_the_same_tables(tmp_path: Path):
    first = [path.read_bytes() for path in write_report(write_study(tmp_path / "one")).files[:3]]
    (tmp_path / "one").rename(tmp_path / "two")
    assert [
        path.read_bytes() for path in write_report(tmp_path / "two/fake-01234567").files[:3]
    ] == first
    assert not any(str(tmp_path).encode() in text for text in first)


def test_a_trial_without_a_result_shows_in_the_exit_status(tmp_path: Path):
    report = write_report(write_study(tmp_path, states={("#8", 1): "failed"}))
    assert report.exit_code == 4
    assert "#8, seed 1: failed (MemoryError)." in report.text


def test_details_of_an_earlier_page_are_dropped(tmp_path: Path):
    for name in ("000.js", "001.js", "notes.txt"):
        (tmp_path / "details").mkdir(exist_ok=True)
        (tmp_path / "details" / name).touch()
    _drop_details(tmp_path, {"details/000.js": ""})
    assert sorted(path.name for path in (tmp_path / "details").iterdir()) == ["000.js", "notes.txt"]


def test_the_archive_is_written_where_it_is_asked_for(tmp_path: Path):
    folder = write_study(tmp_path)
    assert write_bundle(folder, tmp_path / "for/review.zip").read_bytes()[:2] == b"PK"


def test_another_folder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is not a study's folder: it has no study\.json"):
        write_report(tmp_path)
