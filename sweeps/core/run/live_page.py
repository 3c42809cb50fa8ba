"""The report while its study runs: written again in a thread of its own, so that no training waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

import click

from sweeps.core.plan.survey import SearchSituation, Situation
from sweeps.core.report import WrittenReport, report_text, write_report
from sweeps.core.report.search_report import search_text, write_search_report
from sweeps.core.store.finished import remember
from sweeps.core.store.search_record import search_file, with_trials
from sweeps.core.store.study_folder import StudyFolder, study_file
from sweeps.core.store.study_record import with_results

logger = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 5.0
_PAGE_EVERY_S = 30.0
SHARE = 0.05
"""Of the time that may go into writing."""


class LivePage:
    """Keeps ``progress.json`` and the report of a study or a search up to date while it runs.

    The report is written at most every ``every_s`` seconds, less often where writing takes long, so
    that at most ``SHARE`` of a core is taken from the trainings; and only after something has
    changed.

    Args:
        situation: The study or search.
        every_s: Seconds between reports.
    """

    def __init__(
        self, situation: Situation | SearchSituation, every_s: float = _PAGE_EVERY_S
    ) -> None:
        self._situation = situation
        self._folder = StudyFolder(situation.path)
        self._every_s = every_s
        self._progress_written = float("-inf")
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="live-page", daemon=True)

    def start(self) -> None:
        """Begin, with everything as it stands."""
        self._folder.write_progress({}, None, running=True)
        self._changed.set()
        self._thread.start()

    def changed(self) -> None:
        """There is something new to report."""
        self._changed.set()

    def progress(self, steps: Mapping[str, int], eta_s: float | None) -> None:
        """Running trials with the steps they have done, and the seconds to the end; may be called all the time."""
        if time.monotonic() - self._progress_written >= _PROGRESS_EVERY_S:
            self._progress_written = time.monotonic()
            self._folder.write_progress(steps, eta_s, running=True)

    def close(self) -> None:
        """Stop; whoever calls this writes the last report."""
        self._closing.set()
        self._changed.set()
        self._thread.join()
        try:
            self._folder.write_progress({}, None, running=False)
        except OSError as error:  # a full disk, after which more is to be closed
            logger.warning("The page goes on saying that the study runs: %s", error)

    def _work(self) -> None:
        while True:
            self._changed.wait()
            if self._closing.is_set():
                return
            self._changed.clear()
            began = time.monotonic()
            try:
                write_report_of(self._situation, running=True)
            except Exception as error:  # the page is for looking at; the trainings are worth more
                logger.warning(
                    "The report could not be written, which is tried again later: %r", error
                )
            self._closing.wait(max(self._every_s, (time.monotonic() - began) * (1 / SHARE - 1)))


def write_report_of(situation: Situation | SearchSituation, *, running: bool) -> WrittenReport:
    """Write the report of a study or a search as it stands.

    Args:
        situation: The study or search.
        running: Whether a driver runs it, so that the page loads itself again. That of a study asks
            for itself.
    """
    if isinstance(situation, Situation):
        return write_report(situation.path)
    # Who asked for a report with other code or another number of trials has left that in the
    # search's record.
    situation.write()
    return write_search_report(situation.path, running=running)


def remember_report(situation: Situation | SearchSituation, report: WrittenReport) -> None:
    """Keep how a finished study ended, for its next start; a search is looked at anew each time."""
    if isinstance(situation, Situation):
        remember(
            situation.plan.study,
            situation.ledger.storage,
            situation.keys,
            situation.inputs,
            text=report.text,
            exit_code=report.exit_code,
            page=report.page,
            files=report.files,
        )


def print_report_of(situation: Situation | SearchSituation) -> int:
    """Print the report of a study or a search as it stands, and write nothing; returns its exit status."""
    if isinstance(situation, Situation):
        now = study_file(situation.plan, situation.keys, situation.inputs, start_id="")
        text, exit_code = report_text(with_results(now, situation.path))
    else:
        search = search_file(situation.plan, situation.journal.name, situation.inputs, start_id="")
        text, exit_code = search_text(with_trials(search, situation.path))
    click.echo(text)
    return exit_code
