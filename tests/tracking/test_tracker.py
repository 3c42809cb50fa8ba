import warnings
from pathlib import Path

import pytest

from toco.tracking import Tracker, TrackingWarning, open_store


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_dead_server_costs_a_warning_and_no_more_until_the_pause_is_over(run_folder):
    clock = Clock()
    tracker = Tracker(
        "http://me:secret@127.0.0.1:9", "dead", pause_s=30.0, clock=clock
    )  # port 9: nobody listens
    training = run_folder()
    with pytest.warns(TrackingWarning, match="could not be updated from study s") as caught:
        assert tracker.ensure_parent("s", "s") is None
    assert "secret" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tracker.track(training.path) is None  # left alone within the pause
    clock.now_s += 31
    with pytest.warns(
        TrackingWarning, match="could not be updated from .*; the next update tries again"
    ):
        assert tracker.track(training.path) is None
    clock.now_s += 31  # the pause has doubled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tracker.track(training.path) is None
    with pytest.warns(TrackingWarning):
        assert tracker.finish_parent("0" * 32) is False


def test_what_a_failure_left_out_is_caught_up(run_folder, sqlite_uri: str, monkeypatch):
    clock = Clock()
    tracker = Tracker(sqlite_uri, "catching up", clock=clock)
    training = run_folder()
    with monkeypatch.context() as broken:
        broken.setattr(
            "toco.tracking.tracker.open_store",
            lambda *_: (_ for _ in ()).throw(OSError("disk full")),
        )
        with pytest.warns(TrackingWarning, match="OSError: disk full"):
            assert tracker.track(training.path) is None
    training.end("finished", 2)
    run_id = tracker.track(
        training.path, last=True
    )  # the last call does not wait for the pause to end
    assert run_id is not None
    run = open_store(sqlite_uri, "catching up").client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["train/loss_total"] == 1.0


def test_a_broken_run_folder_does_not_stop_a_study(sqlite_uri: str, tmp_path: Path):
    tracker = Tracker(sqlite_uri, "broken", clock=Clock())
    with pytest.warns(TrackingWarning, match="is not a run folder"):
        assert tracker.track(tmp_path) is None


def test_a_broken_run_folder_does_not_keep_the_others_out(
    run_folder, sqlite_uri: str, tmp_path: Path
):
    tracker = Tracker(sqlite_uri, "one broken", clock=Clock())
    with pytest.warns(TrackingWarning, match="is not a run folder"):
        assert tracker.track(tmp_path) is None
    assert tracker.track(run_folder().path) is not None


def test_a_parent_is_asked_for_again_only_after_the_pause_or_at_the_end(
    sqlite_uri: str, monkeypatch
):
    tracker = Tracker(sqlite_uri, "parent", clock=Clock())
    with monkeypatch.context() as broken:
        broken.setattr(
            "toco.tracking.tracker.open_store",
            lambda *_: (_ for _ in ()).throw(ConnectionError("down")),
        )
        with pytest.warns(TrackingWarning, match="ConnectionError: down"):
            assert tracker.ensure_parent("s", "s") is None
    assert tracker.ensure_parent("s", "s") is None
    assert tracker.pages() is None
    assert tracker.ensure_parent("s", "s", last=True) is not None
    # The store answers, so that nothing waits for the end of the pause.
    assert tracker.pages() is not None


def test_a_wrong_uri_is_heard_of_at_once():
    with pytest.raises(ValueError, match="neither sqlite"):
        Tracker("mlruns", "x")
