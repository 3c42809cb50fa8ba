"""The report while its study runs: written again in a thread of its own, so that no training waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from sweeps.core.report import write_report
from sweeps.core.store.study_folder import StudyFolder

logger = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 5.0
_PAGE_EVERY_S = 30.0
SHARE = 0.05
"""Of the time that may go into writing."""


class LiveReport:
    """Keeps a report up to date while what it is of runs.

    It is written at most every ``every_s`` seconds, less often where writing takes long, so that at most ``SHARE`` of
    a core is taken from the trainings; and only after something has changed.
    """

    def __init__(self, write: Callable[[], object], every_s: float = _PAGE_EVERY_S) -> None:
        self._write = write
        self._every_s = every_s
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="live-page", daemon=True)

    def start(self) -> None:
        """Begin, with everything as it stands."""
        self._changed.set()
        self._thread.start()

    def changed(self) -> None:
        """There is something new to report."""
        self._changed.set()

    def close(self) -> None:
        """Stop; whoever calls this writes the last report."""
        self._closing.set()
        self._changed.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._changed.wait()
            if self._closing.is_set():
                return
            self._changed.clear()
            began = time.monotonic()
            try:
                self._write()
            except Exception as error:  # the page is for looking at; the trainings are worth more
                logger.warning("The report could not be written, which is tried again later: %r", error)
            self._closing.wait(max(self._every_s, (time.monotonic() - began) * (1 / SHARE - 1)))


class LivePage(LiveReport):
    """Keeps ``progress.json`` and the report of a study up to date while it runs."""

    def __init__(self, folder: StudyFolder, every_s: float = _PAGE_EVERY_S) -> None:
        super().__init__(partial(write_report, folder.path), every_s)
        self._folder = folder
        self._progress_written = float("-inf")

    def start(self) -> None:
        """Begin, with the study as it stands."""
        self._folder.write_progress({}, None, running=True)
        super().start()

    def progress(self, steps: Mapping[str, int], eta_s: float | None) -> None:
        """Running trials with the steps they have done, and the seconds to the end; may be called all the time."""
        if time.monotonic() - self._progress_written >= _PROGRESS_EVERY_S:
            self._progress_written = time.monotonic()
            self._folder.write_progress(steps, eta_s, running=True)

    def close(self) -> None:
        """Stop; whoever calls this writes the last report."""
        super().close()
        try:
            self._folder.write_progress({}, None, running=False)
        except OSError as error:  # a full disk, after which more is to be closed
            logger.warning("The page goes on saying that the study runs: %s", error)
