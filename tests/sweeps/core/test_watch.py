"""The watch, with a ledger, a stream, a mirror and a page that break."""

import logging

import pytest

from sweeps.core.designs import OneFactor
from sweeps.core.factors import Factor
from sweeps.core.identity import Identity
from sweeps.core.ledger import Ledger
from sweeps.core.progress import Progress
from sweeps.core.runs import Runs
from sweeps.core.situation import Situation, Task
from sweeps.core.study import Metric, Study
from sweeps.core.watch import Watch

KEY = "0123456789abcdef0123"


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
        parts.get("holds", lambda key: True),
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
        watch.lost(KEY, "its worker process is gone", "trace")
        watch.failed(KEY, "image7.png cannot be decoded", "trace")
        watch.ended(KEY)
    assert "is broken" in caplog.text


def test_failures_are_kept_with_their_traces(tmp_path):
    watch = make(tmp_path, Progress("fake", {KEY: 20}))
    watch.lost(KEY, "its worker process is gone", "")
    watch.failed(KEY, "image7.png cannot be decoded", "Traceback: image7")
    failures = Ledger(tmp_path).failures(KEY)
    assert [failure["reason"] for failure in failures] == ["its worker process is gone", "image7.png cannot be decoded"]
    assert failures[1]["traceback"] == "Traceback: image7"


def test_a_row_that_makes_no_sense_is_passed_over(tmp_path):
    progress = Progress("fake", {KEY: 20})
    watch = make(tmp_path, progress)
    watch.reported(KEY, {"step": "many"})
    watch.running({KEY})
    assert "1 running" in progress.line()


def test_waiting_for_another_driver_is_said_once(tmp_path, capsys):
    watch = make(tmp_path, Progress("fake", {KEY: 20}))
    for _ in range(3):
        watch.waiting_for(KEY, 4, "the study table5, process 7")
    assert capsys.readouterr().err.count("run by another driver: the study table5, process 7") == 1


def test_a_driver_that_lost_its_lease_publishes_nothing(tmp_path, caplog):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    make(tmp_path, Progress("fake", {KEY: 20}), holds=lambda key: False).snapshot(KEY, snapshot)
    assert "another driver has taken it over" in caplog.text
    assert not Ledger(tmp_path).run_dir(KEY).exists()
    make(tmp_path, Progress("fake", {KEY: 20})).snapshot(KEY, snapshot)
    assert (Ledger(tmp_path).run_dir(KEY) / "config.json").is_file()
