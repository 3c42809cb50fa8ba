"""The study's folder: what it says of a study, and which driver writes it."""

import json
import subprocess
import sys

import pytest

from sweeps.core.designs import OneFactor
from sweeps.core.factors import Factor
from sweeps.core.lease import Leases
from sweeps.core.study import Metric, Study
from sweeps.core.study_folder import StudyFolder
from sweeps.core.study_record import read_study_record

INPUTS = {"train": "aa", "val": "bb", "weights": None}


@pytest.fixture(scope="module")
def plan():
    design = OneFactor((Factor("method.aux_block", (7, 9)),))
    return Study("example", "An example", "voc_deit_b", design, (0, 1), (Metric("val/cam_miou", "M"),)).resolve()


def keys(plan, start=0):
    return [f"{start + number:020x}" for number in range(len(plan.trials))]


def write(folder, plan, start=0, forecast=None):
    folder.write_study(plan, keys(plan, start), [INPUTS] * len(plan.trials), forecast)


def test_what_is_written_is_what_is_read(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan, forecast={"wall_s": 60})
    record = read_study_record(folder.path)
    assert [cell.label for cell in record.cells] == [cell.label for cell in plan.cells]
    assert [trial.key for trial in record.trials] == keys(plan)
    assert [trial.seed for trial in record.trials] == [0, 1, 0, 1, 2, 3]
    assert [row.versus for row in record.rows] == [None, 0, 0]
    assert [row.role for row in record.rows] == ["base", "row", "a/a"]
    assert record.comparisons == plan.comparisons() == ((1, "val/cam_miou"),)
    assert record.inputs == (INPUTS,)
    assert {trial.state for trial in record.trials} == {"waiting"}
    assert not record.running


def test_a_restart_finds_the_study_as_it_was_started(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan, forecast={"wall_s": 60})
    first = (folder.path / "study.json").read_text()
    # What was foretold first is what is compared with the outcome.
    write(folder, plan, forecast={"wall_s": 10})
    assert (folder.path / "study.json").read_text() == first
    assert folder.history() == []
    other = StudyFolder(tmp_path / "other")
    write(other, plan)
    assert other.start_id != folder.start_id


def test_other_keys_leave_the_earlier_state_in_the_history(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan, forecast={"wall_s": 60})
    first, start_id = json.loads((folder.path / "study.json").read_text()), folder.start_id
    write(folder, plan, start=100, forecast={"wall_s": 10})
    assert [json.loads(path.read_text()) for path in folder.history()] == [first]
    assert folder.start_id == start_id
    assert read_study_record(folder.path).forecast == {"wall_s": 10}
    assert [trial.key for trial in read_study_record(folder.path, folder.history()[0]).trials] == keys(plan)


def test_running_trials_are_known_from_the_progress(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan)
    folder.write_progress({keys(plan)[1]: 40}, 90.0, running=True)
    with Leases(tmp_path, "a driver") as leases:
        leases.acquire([keys(plan)[1]])
        record = read_study_record(folder.path)
    assert [(trial.state, trial.step) for trial in record.trials][:3] == [
        ("waiting", 0),
        ("running", 40),
        ("waiting", 0),
    ]
    assert (record.running, record.eta_s) == (True, 90.0)
    # As a driver leaves it that was killed.
    record = read_study_record(folder.path)
    assert {trial.state for trial in record.trials} == {"waiting"}
    assert (record.running, record.eta_s) == (False, None)


def test_one_driver_writes_and_a_dead_one_is_not_in_the_way(tmp_path):
    folder = StudyFolder(tmp_path / "study")
    with folder.locked() as first, StudyFolder(folder.path).locked() as second:
        assert (first, second) == (True, False)
    program = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder.path / ".lock")], check=False)
    with folder.locked() as owner:
        assert owner


def test_a_folder_of_another_version_is_refused(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan)
    (folder.path / "study.json").write_text('{"format_version": 1}')
    with pytest.raises(ValueError, match="has format version 1; this program reads 2"):
        write(folder, plan)
