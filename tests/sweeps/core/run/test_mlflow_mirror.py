"""The mirror, with a tracker that can be slow or gone."""

import sys
import threading
from pathlib import Path

import pytest

from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import Situation, survey
from sweeps.core.run.mlflow_mirror import Mirror, closing_sentence
from sweeps.core.store.identity import Identity
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.runs import Runs
from sweeps.core.store.study_folder import StudyFolder
from sweeps.core.store.study_record import read_study_record
from toco.files import write_record
from toco.tracking import Pages

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
import sequential_study

WAIT_S = 300.0


class Tracker:
    """Keeps what it is told.

    ``gone`` refuses everything, ``refused`` one trial; ``gate`` holds ``track`` until it is set.
    """

    def __init__(self, gone=False, refused=None):
        self.gone, self.refused, self.gate = gone, refused, threading.Event()
        self.gate.set()
        self.asked, self.entered = threading.Event(), threading.Event()
        self.parents, self.tracked, self.finished, self.described = [], [], [], []

    def ensure_parent(self, study_id, run_name, tags=None, maps=(), *, last=False):
        self.asked.set()
        if self.gone:
            return None
        self.parents.append((study_id, run_name))
        self.maps = list(maps)
        return "parent"

    def pages(self):
        return Pages("http://127.0.0.1:5000", "1")

    def track(self, run_dir, *, parent_run_id=None, run_name=None, tags=None, last=False):
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if self.gone or run_dir.name == self.refused:
            return None
        self.tracked.append((run_dir.name, parent_run_id, run_name, tags["cell"]))
        self.tags = tags
        return f"run{len(self.tracked)}"

    def describe_parent(self, parent_run_id, tags, metrics, *, last=False):
        if self.gone:
            return False
        self.described.append((parent_run_id, tags["look"], metrics))
        return True

    def finish_parent(self, parent_run_id, files=(), status="FINISHED", note=None):
        if self.gone:
            return False
        self.finished.append((parent_run_id, list(files), status))
        return True


@pytest.fixture
def study(tmp_path):
    design = OneFactor((Factor("method.aux_block", (7, 9), labels=("#8", "#10")),))
    metrics = (Metric("val/cam_miou", "M"),)
    plan = Study(
        "example", "An example", "voc_deit_b", design, (0,), metrics, repeat_base=False
    ).resolve()
    inputs = ({"train": "aa", "val": "bb", "weights": None},) * 2
    identities = tuple(Identity(f"{number:020x}", f"{number:020x}", {}) for number in range(2))
    situation = Situation(plan, Runs(Ledger(tmp_path)), inputs, identities)
    situation.write()
    return situation, StudyFolder(situation.path)


def names(situation):
    return list(situation.keys)


def test_every_change_arrives_under_the_studys_run(study):
    situation, folder = study
    tracker = Tracker()
    mirror = Mirror(tracker, situation, situation.trials())
    mirror.start()
    for name in names(situation):
        mirror.changed(name)
    assert mirror.close([folder.path / "table.md"], "FINISHED")
    links = read_study_record(folder.path).mlflow
    shown = "http://127.0.0.1:5000/#/experiments/1/runs"
    assert links.pages.experiment.startswith(f"{shown}?workflowType=machine_learning&")
    assert [links.trial(key) for key in names(situation)] == [
        f"{shown}/run{number}?workflowType=machine_learning" for number in (1, 2)
    ]
    assert set(tracker.parents) == {(folder.start_id, situation.plan.folder_name)}
    first, second = names(situation)
    assert tracker.tracked == [
        (first, "parent", "#8, seed 0", "#8"),
        (second, "parent", "#10, seed 0", "#10"),
    ]
    assert tracker.finished == [("parent", [folder.path / "table.md"], "FINISHED")]
    # What MLflow's UI can group by.
    expected = {
        "study": "example",
        "cell": "#10",
        "role": "trial",
        "key": second,
        "factor.method.aux_block": "9",
    }
    assert tracker.tags == expected


def test_a_mirror_that_is_no_writer_sends_nothing_and_says_that_it_lacks_it(study):
    situation, folder = study
    tracker = Tracker()
    mirror = Mirror(tracker, situation, situation.trials(), is_writer=False)
    mirror.start()
    mirror.changed(names(situation)[0])
    mirror.drain()
    assert not mirror.close([folder.path / "table.md"], "FINISHED")
    assert not tracker.asked.is_set()
    assert (tracker.parents, tracker.tracked, tracker.finished) == ([], [], [])
    assert mirror.pages is None


def test_the_page_lists_the_maps_of_all_methods_of_the_study(tmp_path):
    def maps(*levels):
        design = OneFactor((Factor("method.name", levels),))
        plan = Study(
            "m", "M", "shapes_nano", design, (0,), (Metric("val/cam_miou", "M"),), repeat_base=False
        ).resolve()
        identities = tuple(
            Identity(f"{number:020x}", f"{number:020x}", {}) for number in range(len(plan.trials))
        )
        inputs = ({"train": "aa", "val": "bb", "weights": None},) * len(plan.trials)
        situation = Situation(plan, Runs(Ledger(tmp_path)), inputs, identities)
        situation.write()
        tracker = Tracker()
        mirror = Mirror(tracker, situation, situation.trials())
        mirror.start()
        mirror.close([], "FINISHED")
        return tracker.maps

    assert maps("cam") == ["cam"]  # without a decoder
    assert maps("cam", "toco") == ["cam", "aux_cam", "seg"]


def test_a_slow_store_holds_nobody_up_and_gets_the_newest_state_once(study):
    situation, _ = study
    first, second = names(situation)
    tracker = Tracker()
    tracker.gate.clear()
    mirror = Mirror(tracker, situation, situation.trials())
    mirror.start()
    mirror.changed(first)
    assert tracker.entered.wait(WAIT_S)
    # The store is busy; these return at once.
    for _ in range(100):
        mirror.changed(first)
        mirror.changed(second)
    tracker.gate.set()
    assert mirror.close([], "FINISHED")
    assert [name for name, *_ in tracker.tracked] == [first, first, second]


def test_a_record_that_is_damaged_meanwhile_keeps_nothing_from_mlflow(study):
    situation, folder = study
    start_id = folder.start_id
    tracker = Tracker()
    mirror = Mirror(tracker, situation, situation.trials())
    (folder.path / "study.json").write_bytes(b"{")
    mirror.start()
    for name in names(situation):
        mirror.changed(name)
    assert mirror.close([], "FINISHED")
    assert [name for name, *_ in tracker.tracked] == names(situation)
    assert {study_id for study_id, _ in tracker.parents} == {start_id}


def test_a_store_that_was_gone_gets_everything_at_the_end(study):
    situation, _ = study
    tracker = Tracker(gone=True)
    mirror = Mirror(tracker, situation, situation.trials())
    mirror.start()
    for name in names(situation):
        mirror.changed(name)
    assert tracker.asked.wait(WAIT_S)
    tracker.gone = False
    assert mirror.close([], "FAILED")
    assert sorted(name for name, *_ in tracker.tracked) == sorted(names(situation))
    assert tracker.finished == [("parent", [], "FAILED")]


def test_a_store_that_stays_gone_is_said_and_ends(study):
    situation, _ = study
    tracker = Tracker(gone=True)
    mirror = Mirror(tracker, situation, situation.trials())
    mirror.start()
    mirror.changed(names(situation)[0])
    assert not mirror.close([], "FINISHED")
    assert tracker.finished == []


def test_a_restart_sends_what_earlier_starts_left(study):
    situation, _ = study
    first, _ = names(situation)
    situation.ledger.run_dir(first).mkdir(parents=True)
    tracker = Tracker()
    mirror = Mirror(tracker, situation, situation.trials())
    mirror.start()
    assert mirror.close([], "FINISHED")
    assert [name for name, *_ in tracker.tracked] == [first]


def test_a_trial_that_cannot_be_sent_does_not_keep_the_others_out(study):
    situation, _ = study
    first, second = names(situation)
    tracker = Tracker(gone=True, refused=first)
    mirror = Mirror(tracker, situation, situation.trials())
    mirror.start()
    mirror.changed(first)
    mirror.changed(second)
    assert tracker.asked.wait(WAIT_S)
    tracker.gone = False
    assert not mirror.close([], "FINISHED")
    assert [name for name, *_ in tracker.tracked] == [second]
    assert tracker.finished == [("parent", [], "FINISHED")]


def test_a_store_that_was_down_at_the_start_is_used_when_it_comes_back(study):
    situation, _ = study
    first, _ = names(situation)
    tracker = Tracker(gone=True)
    mirror = Mirror(tracker, situation, situation.trials())
    mirror.start()
    assert tracker.asked.wait(WAIT_S)
    assert tracker.parents == []
    tracker.gone = False
    mirror.changed(first)
    # Before the study ends.
    assert tracker.entered.wait(WAIT_S)
    mirror.close([], "FINISHED")
    assert tracker.tracked[0][:2] == (first, "parent")


def test_the_links_of_a_trial_stay_when_others_are_sent_later(study):
    situation, folder = study
    first, second = names(situation)
    for key in (first, second):
        mirror = Mirror(Tracker(), situation, situation.trials())
        mirror.start()
        mirror.changed(key)
        assert mirror.close([], "FINISHED")
    links = read_study_record(folder.path).mlflow
    assert links.runs == {first: "run1", second: "run1"}


def test_the_looks_of_a_sequential_study_arrive_also_where_the_store_was_gone(tmp_path):
    situation = survey(sequential_study.STUDY, tmp_path)
    situation.write()
    tracker = Tracker(gone=True)
    mirror = Mirror(tracker, situation, situation.trials())
    mirror.start()
    assert tracker.asked.wait(WAIT_S)
    for block, seed in ((block, seed) for block in (7, 8, 9, 10) for seed in range(3)):
        sequential_study.store(situation, (block, seed), sequential_study.value(block, seed))
    mirror.decided()
    tracker.gone = False
    assert mirror.close([], "FAILED")
    parent, look, metrics = tracker.described[-1]
    assert (parent, look) == ("parent", "1 of 3")
    assert {step for name, _, step in metrics if name.startswith("claim_p/")} == {3}
    # The boundary and the seeds of the look to come.
    assert ("row_seeds/3 _10", 4, 4) in metrics
    assert {name for name, _, step in metrics if step == 4} == {
        "claim_boundary/2 _9 differs from _10 in M",
        "claim_boundary/3 _11 differs from _10 in M",
        *(f"row_seeds/{row}" for row in ("1 _8", "2 _9", "3 _10", "4 _11", "5 base again _A_A_")),
    }


def test_a_fixed_list_of_seeds_has_no_looks_to_send(study):
    situation, _ = study
    tracker = Tracker()
    mirror = Mirror(tracker, situation, situation.trials())
    mirror.start()
    mirror.decided()
    assert mirror.close([], "FINISHED")
    assert tracker.described == []


@pytest.mark.parametrize(
    "content",
    [
        {"page": "http://127.0.0.1:5000/#/experiments/1"},
        {"host": "javascript:alert(1)//", "experiment_id": "1", "runs": {}},
        {"host": "http://127.0.0.1:5000", "experiment_id": "1", "runs": {"key": "../1"}},
        {"host": "http://127.0.0.1:5000", "experiment_id": '"', "runs": {}},
        {"host": 1, "experiment_id": "1", "runs": []},
    ],
)
def test_links_that_are_none_are_left_out(study, content):
    _, folder = study
    write_record(folder.path / "mlflow.json", content)
    assert read_study_record(folder.path).mlflow is None


@pytest.mark.parametrize(
    "uri", [None, "http://me:p@ss/w:rd@host:5000", "http://me:secret@host:5000"]
)
def test_what_mlflow_lacks_is_said_with_the_command_that_fills_it(tmp_path, uri):
    launch = Launch(tmp_path, uri, sync_command="python -m sweeps sync example --storage results")
    if uri is not None and "/w" in uri:
        with pytest.raises(ValueError, match="'/', '\\?' or '#' in the password") as caught:
            launch.tracking  # noqa: B018 - it is read to be refused
        assert "p@ss" not in str(caught.value)
        return
    said = closing_sentence(launch, None, complete=False)
    assert said.endswith(": python -m sweeps sync example --storage results")
    assert "secret" not in said
    assert ("MLFLOW_TRACKING_PASSWORD" in said) == (uri is not None)
