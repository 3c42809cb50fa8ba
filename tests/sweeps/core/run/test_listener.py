"""The listener, with a ledger, a stream, a mirror and a page that break."""

import errno
import logging
from types import SimpleNamespace

import pytest

from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan.survey import Situation
from sweeps.core.run.failures import Failure
from sweeps.core.run.listener import Listener
from sweeps.core.run.progress import Progress
from sweeps.core.store.identity import Identity
from sweeps.core.store.leases import LostLeaseError
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.runs import Origin, Runs
from toco.room import NoRoomError

KEY = "0123456789abcdef0123"
GONE = Failure("lost", "its worker process is gone", "", "w1", "node")
UNREADABLE = Failure("hopeless", "image7.png cannot be decoded", "Traceback: image7", "w2", "node")


class Broken:
    """Every method raises."""

    def __getattr__(self, name):
        raise ValueError(f"{name} is broken")


class Silent:
    """Every method does nothing."""

    def __getattr__(self, name):
        return lambda *_, **__: None


class Held:
    """Leases that are held, or lost to another driver."""

    beat_every_s, expires_s, silent_s = 10.0, 60.0, 0.0

    def __init__(self, is_lost=False):
        self.is_lost = is_lost

    def holder(self, key):
        return "the study table5, process 7"

    def silence_s(self, key):
        return self.silent_s

    def check(self, key):
        if self.is_lost:
            raise LostLeaseError("another driver has taken over")


def make(tmp_path, progress=None, **parts):
    design = OneFactor((Factor("method.aux_block", (9,)),))
    metrics = (Metric("val/cam_miou", "M"),)
    plan = Study(
        "example", "An example", "shapes_nano", design, (0,), metrics, repeat_base=False
    ).resolve()
    runs = Runs(Ledger(tmp_path))
    ((_, task),) = Situation(plan, runs, ({},), (Identity(KEY, KEY, {}),)).trials().items()
    progress = progress or Progress("fake", {})
    listener = Listener(
        {KEY: [task]},
        runs=parts.get("runs", runs),
        origin=Origin("example", "shapes_nano"),
        resources={"cpus": 1.0},
        leases=parts.get("leases", Held()),
        progress=progress,
        mirror=parts.get("mirror", Silent()),
        page=parts.get("page", Silent()),
        trial_bytes=0,
        let_go=parts.get("let_go", lambda key, failed: listener.closed(task, failed=failed)),
    )
    if isinstance(progress, Progress):
        progress.expect(task.name, task.config.num_steps)
    return listener, task


@pytest.mark.parametrize("broken", ["runs", "progress", "mirror", "page"])
def test_nothing_that_breaks_ends_a_study(tmp_path, caplog, broken):
    listener, _ = make(tmp_path, **{broken: Broken()})
    (tmp_path / "snapshot").mkdir()
    with caplog.at_level(logging.WARNING):
        listener.running({KEY})
        listener.reported(KEY, {"step": 5})
        listener.snapshot(KEY, tmp_path / "snapshot")
        listener.lost(KEY, GONE)
        listener.failed(KEY, UNREADABLE)
        listener.say("w1 gets no more trials.")
        listener.ended(KEY)
    assert "is broken" in caplog.text


def test_failures_are_kept_with_their_traces_and_hosts(tmp_path, capsys):
    listener, _ = make(tmp_path)
    listener.lost(KEY, GONE)
    listener.failed(KEY, UNREADABLE)
    failures = Ledger(tmp_path).failures(KEY)
    # Where it failed, and not where the driver runs.
    assert [failure.host for failure in failures] == ["w1", "w2"]
    err = capsys.readouterr().err
    assert "is started again: its worker process is gone (on w1)\n" in err
    assert "failed: image7.png cannot be decoded (on w2)\n" in err
    assert [failure.reason for failure in failures] == [
        "its worker process is gone",
        "image7.png cannot be decoded",
    ]
    assert failures[1].traceback == "Traceback: image7"


def test_a_row_that_makes_no_sense_is_passed_over(tmp_path):
    progress = Progress("fake", {})
    listener, _ = make(tmp_path, progress)
    listener.reported(KEY, {"step": "many"})
    listener.running({KEY})
    assert "1 running" in progress.line()


def test_waiting_for_another_driver_is_said_once_and_its_silence_once(tmp_path, capsys):
    leases = Held()
    listener, task = make(tmp_path, leases=leases)
    for silent_s in (0, 5, 20, 25, 30):
        leases.silent_s = silent_s
        listener.waiting_for(task, 4)
    err = capsys.readouterr().err
    assert err.count("4 trials, ") == err.count("are run by another driver: the study table5") == 1
    silence = (
        "There was no sign of life of the study table5, process 7 for 25 s; its trials "
        "are taken over after 60 s."
    )
    assert err.count("no sign of life") == err.count(silence) == 1
    listener, task = make(tmp_path, leases=Held())
    listener.waiting_for(task, 1)
    assert f"{task.name} is run by another driver: the study table5" in capsys.readouterr().err


def test_a_driver_that_lost_its_lease_writes_nothing(tmp_path, caplog):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    listener, _ = make(tmp_path, leases=Held(is_lost=True))
    listener.snapshot(KEY, snapshot)
    listener.lost(KEY, GONE)
    listener.failed(KEY, UNREADABLE)
    assert caplog.text.count("another driver has taken over") == 3
    assert not Ledger(tmp_path).run_dir(KEY).exists()
    assert Ledger(tmp_path).failures(KEY) == []
    with pytest.raises(LostLeaseError, match="another driver has taken over"):
        listener.check()
    make(tmp_path)[0].snapshot(KEY, snapshot)
    assert (Ledger(tmp_path).run_dir(KEY) / "config.json").is_file()


def test_a_full_storage_is_a_sentence(tmp_path, monkeypatch):
    def publish(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    listener, _ = make(tmp_path)
    monkeypatch.setattr(Runs, "publish", publish)
    listener.check()
    listener.snapshot(KEY, tmp_path)
    with pytest.raises(NoRoomError) as raised:
        listener.check()
    assert str(raised.value) == (
        f"{tmp_path} has no room: No space left on device. About 1 MB are needed. Make room there, "
        f"or raise its quota."
    )


def test_what_this_driver_let_go_is_not_its_own_any_more(tmp_path):
    """Tune hands out the last snapshots once more when a trial ends."""
    (tmp_path / "snapshot").mkdir()
    listener, _ = make(tmp_path, leases=Held(is_lost=True))
    listener.snapshot("another", tmp_path / "snapshot")
    listener.check()
    assert not list(tmp_path.glob("runs/*"))


def test_a_trial_is_done_failed_or_stopped_in_the_progress_line(tmp_path):
    for status, failed, counts in (
        ("finished", False, "1/1 trials done, 0 running, 0 failed"),
        ("diverged", False, "0/1 trials done, 0 running, 1 failed"),
        (None, True, "0/1 trials done, 0 running, 1 failed"),
        (None, False, "1/1 trials done, 0 running, 0 failed"),
    ):
        progress = Progress("fake", {})
        runs = SimpleNamespace(status=lambda key, status=status: status, ledger=Ledger(tmp_path))
        listener, task = make(tmp_path, progress, runs=runs)
        listener.closed(task, failed=failed)
        assert counts in progress.line()
