"""The mirror, with a tracker that can be slow or gone."""

import threading

import pytest

from sweeps.core.mirror import Mirror
from sweeps.core.study import Factor, Metric, Study
from sweeps.core.study_folder import StudyFolder


class Tracker:
    """Keeps what it is told.

    ``gone`` refuses everything, ``refused`` one trial; ``gate`` holds ``track`` until it is set.
    """

    def __init__(self, gone=False, refused=None):
        self.gone, self.refused, self.gate = gone, refused, threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.parents, self.tracked, self.finished = [], [], []

    def ensure_parent(self, study_id, run_name, tags=None, *, last=False):
        if self.gone:
            return None
        self.parents.append((study_id, run_name))
        return "parent"

    def track(self, run_dir, *, parent_run_id=None, run_name=None, tags=None, last=False):
        self.entered.set()
        assert self.gate.wait(10)
        if self.gone or run_dir.name == self.refused:
            return None
        self.tracked.append((run_dir.name, parent_run_id, run_name, tags["cell"]))
        return "run"

    def finish_parent(self, parent_run_id, files=(), status="FINISHED", note=None):
        if self.gone:
            return False
        self.finished.append((parent_run_id, list(files), status))
        return True


@pytest.fixture
def study(tmp_path):
    factor = Factor("method.aux_block", (7, 9), ("#8", "#10"))
    plan = Study("example", "An example", "voc_deit_b", (factor,), (0,), (Metric("val/cam_miou", "M"),)).resolve()
    folder = StudyFolder(tmp_path / "study")
    with folder.opened(plan, [{"train": "aa", "val": "bb", "weights": None}]):
        yield plan, folder


def names(plan):
    return [trial.name for trial in plan.trials]


def test_every_change_arrives_under_the_studys_run(study):
    plan, folder = study
    tracker = Tracker()
    mirror = Mirror(tracker, folder, plan)
    mirror.start()
    for name in names(plan):
        mirror.changed(name)
    assert mirror.close([folder.path / "table.md"], "FINISHED")
    assert set(tracker.parents) == {(folder.start_id, plan.folder_name)}
    first, second = names(plan)
    assert tracker.tracked == [(first, "parent", "#8 seed 0", "#8"), (second, "parent", "#10 seed 0", "#10")]
    assert tracker.finished == [("parent", [folder.path / "table.md"], "FINISHED")]


def test_a_slow_store_holds_nobody_up_and_gets_the_newest_state_once(study):
    plan, folder = study
    first, second = names(plan)
    tracker = Tracker()
    tracker.gate.clear()
    mirror = Mirror(tracker, folder, plan)
    mirror.start()
    mirror.changed(first)
    assert tracker.entered.wait(10)
    # The store is busy; these return at once.
    for _ in range(100):
        mirror.changed(first)
        mirror.changed(second)
    tracker.gate.set()
    assert mirror.close([], "FINISHED")
    assert [name for name, *_ in tracker.tracked] == [first, first, second]


def test_a_store_that_was_gone_gets_everything_at_the_end(study):
    plan, folder = study
    tracker = Tracker(gone=True)
    mirror = Mirror(tracker, folder, plan)
    mirror.start()
    for name in names(plan):
        mirror.changed(name)
    mirror._thread.join(0.2)
    tracker.gone = False
    assert mirror.close([], "FAILED")
    assert sorted(name for name, *_ in tracker.tracked) == sorted(names(plan))
    assert tracker.finished == [("parent", [], "FAILED")]


def test_a_store_that_stays_gone_is_said_and_ends(study):
    plan, folder = study
    tracker = Tracker(gone=True)
    mirror = Mirror(tracker, folder, plan)
    mirror.start()
    mirror.changed(names(plan)[0])
    assert not mirror.close([], "FINISHED")
    assert tracker.finished == []


def test_a_restart_sends_what_earlier_starts_left(study):
    plan, folder = study
    first, _ = names(plan)
    folder.run_dir(first).mkdir(parents=True)
    tracker = Tracker()
    mirror = Mirror(tracker, folder, plan)
    mirror.start()
    assert mirror.close([], "FINISHED")
    assert [name for name, *_ in tracker.tracked] == [first]


def test_a_trial_that_cannot_be_sent_does_not_keep_the_others_out(study):
    plan, folder = study
    first, second = names(plan)
    tracker = Tracker(gone=True, refused=first)
    mirror = Mirror(tracker, folder, plan)
    mirror.start()
    mirror.changed(first)
    mirror.changed(second)
    mirror._thread.join(0.2)
    tracker.gone = False
    assert not mirror.close([], "FINISHED")
    assert [name for name, *_ in tracker.tracked] == [second]
    assert tracker.finished == [("parent", [], "FINISHED")]


def test_a_store_that_was_down_at_the_start_is_used_when_it_comes_back(study):
    plan, folder = study
    first, _ = names(plan)
    tracker = Tracker(gone=True)
    mirror = Mirror(tracker, folder, plan)
    mirror.start()
    mirror._thread.join(0.2)
    assert tracker.parents == []
    tracker.gone = False
    mirror.changed(first)
    # Before the study ends.
    assert tracker.entered.wait(10)
    mirror.close([], "FINISHED")
    assert tracker.tracked[0][:2] == (first, "parent")
