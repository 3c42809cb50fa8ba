"""The study's folder: what it says of a study, and which driver writes it."""

import json
import subprocess
import sys
import threading

import pytest

from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.leases import Leases
from sweeps.core.store.study_folder import StudyFolder
from sweeps.core.store.study_record import FORMAT_VERSION, read_study_record
from tests.sweeps.core.damages import DAMAGES, damage
from toco.files import SEAL, record_text
from toco.tracking import Pages

INPUTS = {"train": "aa", "val": "bb", "weights": None}


@pytest.fixture(scope="module")
def plan():
    design = OneFactor((Factor("method.aux_block", (7, 9)),))
    return Study(
        "example", "An example", "voc_deit_b", design, (0, 1), (Metric("val/cam_miou", "M"),)
    ).resolve()


def keys(plan, start=0):
    return [f"{start + number:020x}" for number in range(len(plan.trials))]


def write(folder, plan, start=0, forecast=None):
    folder.write_study(plan, keys(plan, start), [INPUTS] * len(plan.trials), forecast)


def test_what_is_written_is_what_is_read(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan, forecast=Forecast(2, 0, 0, 60))
    record = read_study_record(folder.path)
    assert [cell.label for cell in record.cells] == [cell.label for cell in plan.cells]
    assert [trial.key for trial in record.trials] == keys(plan)
    assert [trial.seed for trial in record.trials] == [0, 1, 0, 1, 2, 3]
    assert [row.versus for row in record.rows] == [None, 0, 0]
    assert [row.role for row in record.rows] == ["base", "row", "a/a"]
    assert record.tests.places == plan.tests.places == ((1, "val/cam_miou"),)
    assert record.inputs == (INPUTS,)
    assert {trial.state for trial in record.trials} == {"waiting"}
    assert not record.running


def test_a_restart_finds_the_study_as_it_was_started(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan, forecast=Forecast(2, 0, 0, 60))
    first = (folder.path / "study.json").read_text()
    # What was predicted first is what is compared with the outcome.
    write(folder, plan, forecast=Forecast(2, 0, 0, 10))
    assert (folder.path / "study.json").read_text() == first
    assert folder.history() == []
    other = StudyFolder(tmp_path / "other")
    write(other, plan)
    assert other.start_id != folder.start_id


def test_other_keys_leave_the_earlier_state_in_the_history(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan, forecast=Forecast(2, 0, 0, 60))
    first, start_id = json.loads((folder.path / "study.json").read_text()), folder.start_id
    write(folder, plan, start=100, forecast=Forecast(2, 0, 0, 10))
    assert [json.loads(path.read_text()) for path in folder.history()] == [first]
    assert folder.start_id == start_id
    assert read_study_record(folder.path).forecast == Forecast(2, 0, 0, 10)
    assert [
        trial.key for trial in read_study_record(folder.path, folder.history()[0]).trials
    ] == keys(plan)


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
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder.path / ".lock")], check=False)
    with folder.locked() as owner:
        assert owner


def test_a_later_version_is_refused(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan)
    (folder.path / "study.json").write_text(record_text({"format_version": FORMAT_VERSION + 1}))
    for use in (lambda: write(folder, plan), lambda: read_study_record(folder.path)):
        with pytest.raises(
            ValueError, match=r"has format version 4; this program reads 3\. Give another --storage"
        ):
            use()


def test_a_study_of_version_0_4_is_kept_aside_and_written_again(tmp_path, plan, caplog):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan, forecast=Forecast(2, 0, 0, 60))
    start_id = folder.start_id
    file = folder.path / "study.json"
    old = {**json.loads(file.read_text()), "format_version": 2}
    del old[SEAL]
    file.write_text(json.dumps(old, indent=1) + "\n")
    as_written = file.read_bytes()
    with pytest.raises(
        ValueError, match=r"format version 2; this program reads 3\. Run the study's command again"
    ):
        read_study_record(folder.path)
    write(folder, plan)
    kept = folder.path / "history" / "study.json.format-2-1"
    assert kept.read_bytes() == as_written
    assert f"{file} was written by an earlier version" in caplog.text
    assert str(kept) in caplog.text
    assert folder.start_id == start_id
    assert folder.history() == []
    assert read_study_record(folder.path).forecast is None


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_study_is_kept_aside_and_written_again(tmp_path, plan, name, caplog):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan)
    file = folder.path / "study.json"
    whole = read_study_record(folder.path)
    damage(file, name)
    damaged, is_older = file.read_bytes(), name == "another object"
    fault = (
        "has format version 1"
        if is_older
        else "is damaged: its bytes are not those that were written"
    )
    with pytest.raises(ValueError, match=rf"study\.json {fault}.* Run the study's command again"):
        read_study_record(folder.path)
    write(folder, plan)
    (kept,) = (folder.path / "history").iterdir()
    assert kept.name == ("study.json.format-1-1" if is_older else "study.json.damaged-1")
    assert kept.read_bytes() == damaged
    assert (
        f"{file} {'was written by an earlier version' if is_older else 'is damaged'}" in caplog.text
    )
    assert f"kept as {kept}" in caplog.text
    # Damage may have taken the start with it.
    assert read_study_record(folder.path).model_copy(update={"start_id": whole.start_id}) == whole
    # The next damage has a place of its own.
    damage(file, "nothing")
    write(folder, plan)
    assert len(list((folder.path / "history").iterdir())) == 2
    assert folder.history() == []


@pytest.mark.parametrize("cut", [200, 1000])
def test_a_cut_off_study_keeps_its_start(tmp_path, plan, cut):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan)
    start_id, file = folder.start_id, folder.path / "study.json"
    file.write_bytes(file.read_bytes()[:cut])
    write(folder, plan)
    assert folder.start_id == start_id


def test_drivers_that_begin_at_once_have_one_start(tmp_path, plan):
    starts = set()
    for number in range(5):
        path, barrier = tmp_path / str(number), threading.Barrier(4)

        def begin(path=path, barrier=barrier):
            barrier.wait()
            folder = StudyFolder(path)
            write(folder, plan)
            starts.add((path.name, folder.start_id))

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(starts) == 5


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_progress_and_mlflow_page_are_as_if_missing(tmp_path, plan, name, caplog):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan)
    folder.write_progress({keys(plan)[0]: 3}, 0.5, running=True)
    pages = Pages("http://127.0.0.1:5000", "1")
    folder.write_mlflow_links(pages, {"key": "run"})
    links = read_study_record(folder.path).mlflow
    assert (links.pages, links.runs) == (pages, {"key": "run"})
    for file in ("progress.json", "mlflow.json"):
        damage(folder.path / file, name)
    record = read_study_record(folder.path)
    assert (record.mlflow, record.running, record.eta_s) == (None, False, None)
    assert f"{folder.path / 'progress.json'} is damaged" in caplog.text
    folder.write_mlflow_links(pages, {"other": "run"})
    links = read_study_record(folder.path).mlflow
    assert (links.pages, links.runs) == (pages, {"other": "run"})


def test_a_study_that_another_program_wrote_is_a_sentence(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan)
    file = folder.path / "study.json"
    record = json.loads(file.read_text())
    del record[SEAL], record["purpose"]
    file.write_text(record_text({**record, "seeds": "0, 1"}))
    with pytest.raises(
        ValueError,
        match=r"study\.json is not a record of its kind: seeds: .*purpose: Field required",
    ):
        read_study_record(folder.path)


@pytest.mark.parametrize("name", ["progress.json", "mlflow.json"])
def test_what_is_written_beside_by_another_program_counts_as_missing(tmp_path, plan, name, caplog):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan)
    (folder.path / name).write_text(record_text({"steps": 3, "host": "javascript:alert(1)"}))
    record = read_study_record(folder.path)
    assert (record.mlflow, record.running, record.eta_s) == (None, False, None)
    assert f"{folder.path / name} is not a record of its kind" in caplog.text


def test_a_damaged_earlier_state_says_what_to_do(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    write(folder, plan)
    write(folder, plan, start=100)
    (earlier,) = folder.history()
    damage(earlier, "a missing end")
    with pytest.raises(
        ValueError,
        match=r"0000\.json is damaged.*Delete it, or compare with another study's folder",
    ):
        read_study_record(folder.path, earlier)
