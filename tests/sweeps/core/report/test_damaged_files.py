"""One damaged or missing file of a run folder: the table and the page are written, and say what
they lack.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sweeps.core.findings.analysis import analyse
from sweeps.core.findings.evaluations import unreadable_files
from sweeps.core.findings.image_intervals import FILES_NAMED
from sweeps.core.report import page as page_module
from sweeps.core.report import write_report
from sweeps.core.report.curves import read_curves
from sweeps.core.store.study_record import read_study_record
from tests.sweeps.core.damages import DAMAGES
from tests.sweeps.core.records import M
from tests.sweeps.core.report.run_folders import STEP, gallery, write_confusions, write_runs
from tests.sweeps.core.report.test_write import write_study
from toco.train import records

CONFUSIONS = np.array([[[6, 4], [2, 8]], [[5, 5], [5, 5]]])


@pytest.fixture
def folder(tmp_path: Path):
    """A study of two rows and two seeds with all that evaluations leave."""
    folder = write_study(tmp_path)
    study = read_study_record(folder)
    write_runs(study, images=("a", "b"))
    for trial in study.trials:
        write_confusions(trial, ("a", "b"), CONFUSIONS)
        path = trial.run_dir / f"evaluations/step_{STEP:08d}.json"
        scores = {"class_names": ["x", "y"], "per_class": {"cam_iou": [0.5, 0.4]}}
        curve = {"thresholds": [0.0, 0.5], "cam_miou": [0.4, 0.5], "aux_cam_miou": [0.3, 0.2]}
        records.write(
            path, {"step": STEP, "threshold_curve": curve, "patch_similarity": [0.5], **scores}
        )
    return folder


def the_file(folder: Path, pattern: str) -> Path:
    """The file of the first row's first trial, which the gallery and the curves show."""
    (path,) = read_study_record(folder).trials_by_cell[0][0].run_dir.glob(pattern)
    return path


def relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder.parent).as_posix()


def test_a_whole_study_lacks_nothing(folder):
    report = write_report(folder)
    assert "Left out" not in report.text
    assert "missing or damaged" not in report.text
    assert 'id="left-out"' not in report.page.read_text()


def test_a_cut_off_picture_leaves_its_place_empty(folder):
    before = write_report(folder)
    shown = before.page.read_text().count("data:image/webp")
    table = (folder / "table.csv").read_bytes()
    path = the_file(folder, "pictures/*/a.png")
    path.write_bytes(path.read_bytes()[:200])
    report = write_report(folder)
    sentence = f"{relative(path, folder)} cannot be read, so its picture is left out"
    assert f"Left out of the page: {sentence}" in report.text
    html = report.page.read_text()
    assert sentence in html
    assert str(folder.parent) not in html
    # Its four maps; the image and its ground truth come from the other row.
    assert html.count("data:image/webp") == shown - 4
    assert html.count(">damaged</span>") == 4
    assert (folder / "table.csv").read_bytes() == table


@pytest.mark.parametrize("cut", [0, 20, 200])
def test_a_picture_that_all_rows_have_damaged_is_empty(folder, cut):
    for path in folder.parent.glob("runs/*/pictures/*/a.png"):
        path.write_bytes(path.read_bytes()[:cut])
    faults: list[str] = []
    first, second = gallery(read_study_record(folder), faults)[0].lines
    assert {(shown.uri, shown.is_damaged) for maps in first.maps.values() for shown in maps} == {
        (None, True)
    }
    assert all(shown.uri for maps in second.maps.values() for shown in maps)
    assert len(faults) == 2


def test_every_flipped_byte_of_a_picture_is_drawn_or_named(folder):
    path = the_file(folder, "pictures/*/a.png")
    whole = path.read_bytes()
    study = read_study_record(folder)
    named = 0
    for position in range(0, len(whole), max(len(whole) // 60, 1)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        faults: list[str] = []
        (matrix,) = gallery(study, faults)
        shown = matrix.lines[0].maps
        uris = [maps[0].uri for maps in shown.values()]
        assert all(uris) != bool(faults)
        named += bool(faults)
    assert named > 20


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_damaged_counts_and_scores_are_named_in_a_caption(folder, suffix):
    assert analyse(read_study_record(folder)).rows[1].classes
    path = the_file(folder, f"evaluations/*.{suffix}")
    path.write_bytes(path.read_bytes()[:-30])
    (note,) = [note for note in analyse(read_study_record(folder)).notes if note.startswith("For ")]
    assert note.startswith(
        "For 1 of 4 finished trials, counts by image or scores by class are missing or damaged"
    )
    assert note.endswith(f"The files: {relative(path, folder)}.")


def test_every_flipped_byte_of_counts_is_seen(folder):
    path = the_file(folder, "evaluations/*.npz")
    study = read_study_record(folder)
    whole, expected = path.read_bytes(), gallery(study)[0].lines[0].maps["cam"][0].iou
    assert expected is not None
    seen = 0
    for position in range(0, len(whole), max(len(whole) // 100, 1)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        iou = gallery(study)[0].lines[0].maps["cam"][0].iou
        # Some bytes of an archive, such as the dates of its members, mean nothing.
        assert iou in (None, expected)
        seen += iou is None
    assert seen > 50


def test_deleted_run_folders_are_counted(folder, monkeypatch):
    write_report(folder)
    numbers = [line.split(",")[9:11] for line in (folder / "table.csv").read_text().splitlines()]
    shutil.rmtree(folder.parent / "runs")
    monkeypatch.setattr(page_module, "MAX_FAULTS", 3)
    report = write_report(folder)
    assert [
        line.split(",")[9:11] for line in (folder / "table.csv").read_text().splitlines()
    ] == numbers
    text = " ".join(report.text.split())
    assert (
        "For 4 of 4 finished trials, counts by image or scores by class are missing or damaged"
        in text
    )
    assert f"and {8 - FILES_NAMED} more." in text
    assert report.text.count("Left out of the page: runs/") == 3
    assert "Left out of the page: And 1 more." in report.text
    assert report.exit_code == 0


@pytest.mark.parametrize("name", DAMAGES)
def test_no_damage_ends_a_report(folder, name):
    """What a report reads of a run folder, without what it draws of it."""
    study = read_study_record(folder)
    trial = study.trials_by_cell[0][0]
    whole = analyse(study)
    for pattern in (
        "config.json",
        "provenance.json",
        "metrics.jsonl",
        "evaluations/*.json",
        "evaluations/*.npz",
    ):
        path = the_file(folder, pattern)
        content = path.read_bytes()
        damaged = DAMAGES[name](content)
        path.write_bytes(damaged)
        faults = read_curves(study).faults
        page_module.read_log_tail(trial.run_dir)
        files = unreadable_files(trial)
        # The other object is one of a run folder of version 0.4.
        if damaged != content and not pattern.endswith("npz") and name != "another object":
            assert any(str(path) in fault for fault in faults)
            assert files == ([path] if pattern.startswith("evaluations") else [])
        assert [row.figures[M].summary for row in analyse(study).rows] == [
            row.figures[M].summary for row in whole.rows
        ]
        path.write_bytes(content)
    assert not unreadable_files(trial)
