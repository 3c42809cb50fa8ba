"""The report while its study runs, written by a thread so that no training waits for it."""

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
"""Seconds between two writes of ``progress.json``: often enough to watch, and 12 small files a
minute on a network disk."""
_PAGE_EVERY_S = 30.0
"""Seconds between two reports: an open page reloads no more often."""
SHARE = 0.05
"""Largest share of the time that may go into writing the report.

A choice, not a measurement. Where trainings use all cores, they lose this share of one core.
"""


class LivePage:
    """Keep ``progress.json`` and the report of a study or a search up to date while it runs.

    The report is written only after a change or a failed write, and at most every ``every_s``
    seconds. A report that takes long is written less often: at most the share ``SHARE`` of the time
    goes into it.

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
        """Start the thread, which writes a first report at once."""
        self._folder.write_progress({}, None, running=True)
        self._changed.set()
        self._thread.start()

    def changed(self) -> None:
        """Note that the report is out of date."""
        self._changed.set()

    def progress(self, steps: Mapping[str, int], eta_s: float | None) -> None:
        """Write ``progress.json`` if it is due. The caller need not limit its calls.

        Args:
            steps: Steps done by each running trial.
            eta_s: Predicted seconds to the end; ``None`` where unknown.
        """
        if time.monotonic() - self._progress_written >= _PROGRESS_EVERY_S:
            self._progress_written = time.monotonic()
            self._folder.write_progress(steps, eta_s, running=True)

    def close(self) -> None:
        """Stop the thread. The caller writes the last report."""
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
                self._changed.set()
            self._closing.wait(max(self._every_s, (time.monotonic() - began) * (1 / SHARE - 1)))


def write_report_of(situation: Situation | SearchSituation, *, running: bool) -> WrittenReport:
    """Write the report of a study or a search in its present state.

    Args:
        situation: The study or search.
        running: Whether a driver runs it. Only the page of a search needs to know: it then reloads.
            For a study the argument has no effect, because its page reads ``progress.json``.
    """
    if isinstance(situation, Situation):
        return write_report(situation.path)
    # The command ``report`` with other code, or with another number of trials, may have changed
    # ``search.json`` meanwhile. The driver writes its own values again.
    situation.write()
    return write_search_report(situation.path, running=running)


def remember_report(situation: Situation | SearchSituation, report: WrittenReport) -> None:
    """Store how a finished study ended, for its next start. Nothing is stored for a search."""
    if isinstance(situation, Situation):
        remember(
            situation.plan.study,
            situation.ledger.storage,
            tuple(situation.trials()),
            situation.inputs,
            text=report.text,
            exit_code=report.exit_code,
            page=report.page,
            files=report.files,
        )


def print_report_of(situation: Situation | SearchSituation) -> int:
    """Print the report of a study or a search in its present state; return its exit status.

    Nothing is written.
    """
    if isinstance(situation, Situation):
        # ``start_id`` names the start of a driver. No driver starts here, and nothing is written.
        study = study_file(situation.plan, situation.keys, situation.inputs, start_id="")
        text, exit_code = report_text(with_results(study, situation.path))
    else:
        search = search_file(situation.plan, situation.journal.name, situation.inputs, start_id="")
        text, exit_code = search_text(with_trials(search, situation.path))
    click.echo(text)
    return exit_code
