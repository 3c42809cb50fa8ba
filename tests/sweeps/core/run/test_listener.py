"""The watch, with a ledger, a stream, a mirror and a page that break."""

import errno
import logging

import pytest

from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan.survey import Situation, Task
from sweeps.core.run.failures import Failure, LeftOut
from sweeps.core.run.listener import Watch
from sweeps.core.run.obstacle import Obstacle
from sweeps.core.run.progress import Progress
from sweeps.core.store.identity import Identity
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.runs import Runs
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


def make(tmp_path, progress, **parts):
    design = OneFactor((Factor("method.aux_block", (9,)),))
    metrics = (Metric("val/cam_miou", "M"),)
    plan = Study("example", "An example", "shapes_nano", design, (0,), metrics, a_a=False).resolve()
    identity = Identity(KEY, KEY, {})
    runs = parts.pop("runs", Runs(Ledger(tmp_path)))
    situation = Situation(plan, runs, ({},), (identity,))
    watch = Watch(
        situation,
        progress,
        parts.get("mirror", Silent()),
        parts.get("page", Silent()),
        {"cpus": 1.0},
        parts.get("check", lambda key: None),
        Obstacle(tmp_path, trial_bytes=0),
    )
    watch.expect([Task(plan.trials[0], identity)])
    return watch


@pytest.mark.parametrize("broken", ["runs", "progress", "mirror", "page"])
def test_nothing_that_breaks_ends_a_study(tmp_path, caplog, broken):
    parts = {"progress": Progress("fake", {KEY: 20}), broken: Broken()}
    watch = make(tmp_path, parts.pop("progress"), **parts)
    (tmp_path / "snapshot").mkdir()
    with caplog.at_level(logging.WARNING):
        watch.running({KEY})
        watch.reported(KEY, {"step": 5})
        watch.snapshot(KEY, tmp_path / "snapshot")
        watch.lost(KEY, GONE)
        watch.failed(KEY, UNREADABLE)
        watch.left_out(LeftOut("node", "w1", "No space left on device"))
        watch.ended(KEY)
    assert "is broken" in caplog.text


def test_failures_are_kept_with_their_traces_and_hosts(tmp_path, capsys):
    watch = make(tmp_path, Progress("fake", {KEY: 20}))
    watch.lost(KEY, GONE)
    watch.failed(KEY, UNREADABLE)
    failures = Ledger(tmp_path).failures(KEY)
    # Where it failed, and not where the driver runs.
    assert [failure.host for failure in failures] == ["w1", "w2"]
    err = capsys.readouterr().err
    assert "is started again: its worker process is gone (on w1)\n" in err
    assert "failed: image7.png cannot be decoded (on w2)\n" in err
    assert [failure.reason for failure in failures] == ["its worker process is gone", "image7.png cannot be decoded"]
    assert failures[1].traceback == "Traceback: image7"


def test_a_row_that_makes_no_sense_is_passed_over(tmp_path):
    progress = Progress("fake", {KEY: 20})
    watch = make(tmp_path, progress)
    watch.reported(KEY, {"step": "many"})
    watch.running({KEY})
    assert "1 running" in progress.line()


def test_waiting_for_another_driver_is_said_once_and_its_silence_once(tmp_path, capsys):
    watch, leases = make(tmp_path, Progress("fake", {KEY: 20})), Leases(tmp_path, "a test")
    for silent_s in (0, 5, 20, 25, 30):
        watch.waiting_for(KEY, 4, "the study table5, process 7", silent_s, leases)
    err = capsys.readouterr().err
    assert err.count("run by another driver: the study table5, process 7") == 1
    silence = "There was no sign of life of the study table5, process 7 for 25 s; its trials are taken over after 60 s."
    assert err.count("no sign of life") == err.count(silence) == 1


def lost(key):
    raise LostLeaseError("another driver has taken over")


def test_a_driver_that_lost_its_lease_writes_nothing(tmp_path, caplog):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    watch = make(tmp_path, Progress("fake", {KEY: 20}), check=lost)
    watch.snapshot(KEY, snapshot)
    watch.lost(KEY, GONE)
    watch.failed(KEY, UNREADABLE)
    assert caplog.text.count("another driver has taken over") == 3
    assert not Ledger(tmp_path).run_dir(KEY).exists()
    assert Ledger(tmp_path).failures(KEY) == []
    with pytest.raises(LostLeaseError, match="another driver has taken over"):
        watch.check()
    make(tmp_path, Progress("fake", {KEY: 20})).snapshot(KEY, snapshot)
    assert (Ledger(tmp_path).run_dir(KEY) / "config.json").is_file()


def test_a_full_storage_is_a_sentence(tmp_path, monkeypatch):
    def publish(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    watch = make(tmp_path, Progress("fake", {KEY: 20}))
    monkeypatch.setattr(Runs, "publish", publish)
    watch.check()
    watch.snapshot(KEY, tmp_path)
    with pytest.raises(NoRoomError) as raised:
        watch.check()
    assert str(raised.value) == (
        f"{tmp_path} has no room: No space left on device. About 1 MB are needed. Make room there, or raise its quota."
    )
