"""The watch, with a folder, a stream and a mirror that break."""

import logging

import pytest

from sweeps.core.progress import Progress
from sweeps.core.study_folder import StudyFolder
from sweeps.core.watch import Watch


class Broken:
    """Every method raises."""

    def __getattr__(self, name):
        raise ValueError(f"{name} is broken")


@pytest.mark.parametrize("broken", ["folder", "progress", "mirror"])
def test_nothing_that_breaks_ends_a_study(tmp_path, caplog, broken):
    parts = {"folder": StudyFolder(tmp_path), "progress": Progress("fake", {"a": 20}), "mirror": None}
    watch = Watch(**{**parts, broken: Broken()})
    (tmp_path / "snapshot").mkdir()
    with caplog.at_level(logging.WARNING):
        watch.running({"a"})
        watch.reported("a", {"step": 5})
        watch.snapshot("a", tmp_path / "snapshot")
        watch.lost("a", "its worker process is gone")
        watch.failed("a", "image7.png cannot be decoded")
        watch.ended("a")
    assert "is broken" in caplog.text


def test_a_row_that_makes_no_sense_is_passed_over(tmp_path):
    progress = Progress("fake", {"a": 20})
    watch = Watch(StudyFolder(tmp_path), progress, None)
    watch.reported("a", {"step": "many"})
    watch.reported("unknown", {"step": 5})
    watch.running({"a"})
    assert "1 running" in progress.line()
