"""The report while a study runs: written in turn, never twice at once, and never in the way of what
it reports on.
"""

import errno
import logging
import threading
from types import SimpleNamespace

import pytest

from sweeps.core.run import live_page
from sweeps.core.run.live_page import LivePage
from sweeps.core.store.study_folder import StudyFolder
from toco.files import read_record

WAIT_S = 300.0


class Writer:
    """Counts reports; ``gate`` holds one until it is set, ``error`` is raised by the next."""

    def __init__(self):
        self.written, self.at_once, self.most_at_once = 0, 0, 0
        self.gate, self.began = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.error = None

    def __call__(self):
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.began.release()
        assert self.gate.wait(WAIT_S)
        self.at_once -= 1
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.written += 1

    def wait(self):
        assert self.began.acquire(timeout=WAIT_S)


@pytest.fixture
def writer(monkeypatch):
    writer = Writer()
    monkeypatch.setattr(live_page, "write_report_of", lambda situation, running: writer())
    return writer


def make(tmp_path, **options):
    return LivePage(SimpleNamespace(path=tmp_path), **options)


def test_it_is_written_at_the_start_and_after_a_change(tmp_path, writer):
    report = make(tmp_path, every_s=0.0)
    report.start()
    writer.wait()
    report.changed()
    writer.wait()
    report.close()
    assert writer.written == 2


def test_changes_while_it_is_written_are_one_more_report_and_nobody_waits(tmp_path, writer):
    writer.gate.clear()
    report = make(tmp_path, every_s=0.0)
    report.start()
    writer.wait()
    # The first is being written; these return at once all the same.
    for _ in range(5):
        report.changed()
    assert writer.written == 0
    writer.gate.set()
    writer.wait()
    report.close()
    assert (writer.written, writer.most_at_once) == (2, 1)


def test_without_a_change_nothing_is_written_and_closing_ends_a_pause_at_once(tmp_path, writer):
    # A pause of an hour: closing would hang in it.
    report = make(tmp_path, every_s=3600.0)
    report.start()
    writer.wait()
    report.changed()
    report.close()
    assert writer.written == 1
    assert not report._thread.is_alive()


def test_a_report_that_cannot_be_written_is_tried_again(tmp_path, writer, caplog):
    writer.error = OSError("no space left on device")
    report = make(tmp_path, every_s=0.0)
    with caplog.at_level(logging.WARNING):
        report.start()
        writer.wait()
        # No trial ends meanwhile: the failed write alone makes the report due again.
        writer.wait()
        report.close()
    assert writer.written == 1
    (warning,) = caplog.messages
    assert "no space left on device" in warning


def test_a_large_report_takes_at_most_its_share_of_the_time(tmp_path, monkeypatch):
    clock = [100.0]

    def write(situation, running):
        clock[0] += 40.0

    pauses = []
    report = make(tmp_path, every_s=30.0)
    monkeypatch.setattr(live_page, "write_report_of", write)
    monkeypatch.setattr(live_page.time, "monotonic", lambda: clock[0])

    class Closing(threading.Event):
        """Set by the first pause."""

        def wait(self, timeout=None):
            pauses.append(timeout)
            self.set()
            report._changed.set()
            return False

    report._closing = Closing()
    report._changed.set()
    report._work()
    assert pauses == [pytest.approx(760.0)]
    assert 40 / (40 + pauses[0]) == pytest.approx(live_page.SHARE)


def progress(folder):
    return read_record(folder.path / "progress.json")


def test_a_study_says_how_far_it_is_but_not_all_the_time(tmp_path, monkeypatch, writer):
    clock = [100.0]
    folder = StudyFolder(tmp_path)
    page = make(tmp_path, every_s=0.0)
    page.start()
    assert progress(folder) == {"running": True, "steps": {}, "eta_s": None}
    writer.wait()
    monkeypatch.setattr(live_page.time, "monotonic", lambda: clock[0])
    page.progress({"a": 5}, 60.0)
    clock[0] += 4.9
    page.progress({"a": 6}, 55.0)
    assert progress(folder) == {"running": True, "steps": {"a": 5}, "eta_s": 60.0}
    clock[0] += 0.1
    page.progress({"a": 7}, 50.0)
    assert progress(folder) == {"running": True, "steps": {"a": 7}, "eta_s": 50.0}
    page.close()
    assert progress(folder) == {"running": False, "steps": {}, "eta_s": None}
    assert writer.written == 1


def test_a_full_disk_at_the_end_is_said_and_ends_nothing(tmp_path, monkeypatch, writer, caplog):
    page = make(tmp_path)
    page.start()

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StudyFolder, "write_progress", refuse)
    page.close()
    assert "goes on saying that the study runs: [Errno 28] No space left on device" in caplog.text
